"""What the example scripts share: arguments with recipes, tables and pictures of a run."""
