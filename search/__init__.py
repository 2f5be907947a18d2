"""The search: study files, Optuna, front, reports, exports, command line. The only room that knows Optuna."""

import importlib

__project__ = "splitsearch"


def _check_rooms() -> None:
    """Refuse to run beside another distribution's ``spaces`` or ``evaluators``: installers do not notice that clash."""
    for room in ("spaces", "evaluators"):
        try:
            module = importlib.import_module(room)
        except ImportError as error:
            raise ImportError(f"splitsearch's package '{room}' cannot be imported ({error}); {_ADVICE}") from error
        if getattr(module, "__project__", None) != __project__:
            raise ImportError(f"'{room}' is not splitsearch's package but {module.__file__}; {_ADVICE}")


_ADVICE = "another distribution may bring one of that name: install splitsearch into an environment of its own"
_check_rooms()
