"""Settings: what a person may set, with which values, and the checked `Config` that everything else gets.

In: what Hydra composed from the YAML of `configs` and a command line. Out: a `Config`, or one clear line.
May import: nothing but `errors`; neither torch nor data, so that a mistake shows at once.
"""

from pathlib import Path

from .keys import flat_settings, known_keys
from .parse import parse
from .schema import Config

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the settings inside the package, a checkout has them beside it.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

__all__ = ["CONFIGS", "Config", "flat_settings", "known_keys", "parse"]
