"""Registries: the named sockets that backbones, projections, benchmarks and triplet generators plug into."""

import difflib
from collections.abc import Callable
from typing import Any


class RegistryError(KeyError):
    """Unknown or taken name. A `KeyError` whose message is printed as it is, not as a quoted `repr`."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Registry(dict):
    """
    A dictionary from names to classes that says what it holds when it is asked for what it does not hold.

    A part registers itself with the decorator [`~Registry.register`]; importing its module is the registration.

    Args:
        kind (`str`):
            What the entries are, in the singular, used in error messages (`"projection"`).
        label (`str`):
            Name of the variable that holds the registry, used in error messages (`"PROJECTIONS"`).

    Example:

    ```python
    >>> PROJECTIONS = Registry("projection", "PROJECTIONS")

    >>> @PROJECTIONS.register("mine")
    ... class MyProjection: ...

    >>> PROJECTIONS["mine"]
    <class 'MyProjection'>
    ```
    """

    def __init__(self, kind: str, label: str):
        super().__init__()
        self.kind = kind
        self.label = label

    def register(self, *names: str) -> Callable[[Any], Any]:
        """
        Class decorator that enters a class under one or several names.

        Args:
            names (`str`):
                Names of the entry; the first one is the main name, the others are aliases.

        Returns:
            `Callable`: a decorator that returns the class unchanged.

        Raises:
            TypeError: no name was given, or the decorator was used without its parentheses.
            RegistryError: a name is already taken by another class.
        """
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"`{self.label}.register` takes one or more names, but got {names!r}. "
                f'Write `@{self.label}.register("name")`.'
            )

        def decorator(entry: Any) -> Any:
            for name in names:
                if name in self:
                    raise RegistryError(
                        f"The {self.kind} name `{name}` is taken by {self[name]!r} and cannot be given to {entry!r}. "
                        f"Choose another name in `@{self.label}.register(...)`."
                    )
            for name in names:
                self[name] = entry
            return entry

        return decorator

    # Names come out of files, where a list may stand in the place of one.
    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name)

    def __getitem__(self, name: Any) -> Any:
        return super().__getitem__(name) if isinstance(name, str) else self.__missing__(name)

    def __missing__(self, name: Any) -> Any:
        near = difflib.get_close_matches(str(name), list(self), n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise RegistryError(
            f"Unknown {self.kind} `{name}`.{hint} Available: {', '.join(sorted(self)) or 'none'}. "
            f'To add one, decorate its class with `@{self.label}.register("{name}")` and import its module.'
        )
