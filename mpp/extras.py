"""Packages that some commands need and that a plain installation leaves out."""

from __future__ import annotations

from importlib.util import find_spec

DISTRIBUTION = "masked-patch-prediction"
"""The name of this package on the package index; it is imported as `mpp`."""
EXTRAS = {
    "study": ("scipy",),
    "tensorboard": ("tensorboard",),
}
"""The modules of each extra."""
_NAMES = {"scipy": "SciPy"}


def require(purpose: str, *modules: str) -> None:
    """Refuse to start what would fail later for want of a package.

    Args:
        purpose: what needs it, as the subject of a sentence, e.g. `the linear probe`.
        modules: names to import, each of one extra.

    Raises:
        RuntimeError: naming what is missing and how to install it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        extras = [name for name, contained in EXTRAS.items() if set(contained) & set(missing)]
        names = ", ".join(_NAMES.get(module, module) for module in missing)
        raise RuntimeError(f'{purpose} needs {names}: pip install "{DISTRIBUTION}[{",".join(extras)}]"')
