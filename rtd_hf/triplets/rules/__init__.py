"""Triplets by rules of English: what can be edited in a caption, and templates that say how."""

from .generator import RULES, RuleGenerator, RuleOptions


__all__ = ["RULES", "RuleGenerator", "RuleOptions"]
