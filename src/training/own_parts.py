"""Callbacks and loggers of the user's own, which a preset names by `_target_`."""

import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate

from ..errors import UserError


def make(key: str, settings: dict[str, Any], kind: type[Any]) -> Any:
    """Call what `_target_` names with the other entries as its arguments.

    Its module may stand beside the presets, in the folder that --config-dir names.

    Args:
        key: the setting that has it, for the message.
        kind: what it has to be.

    Raises:
        UserError: if it cannot be imported, does not take these arguments, or is of another kind.
    """
    for source in HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ():
        if source.provider == "command-line" and source.path not in sys.path:
            sys.path.append(source.path)  # for good, as it may import more of its own later
    name = settings["_target_"]
    try:
        made = instantiate(settings, _convert_="all")
    except HydraException as error:
        way_out = "give the arguments that it takes"
        if str(error).startswith("Error locating"):
            way_out = "put its module into the folder of --config-dir, or install it"
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        raise UserError(f"{key} has _target_={name}, which fails with {reason}; {way_out}") from error
    if not isinstance(made, kind):
        raise UserError(
            f"{key} has _target_={name}, which is of {type(made).__module__}.{type(made).__name__}: it must be a"
            f" {kind.__name__} of pytorch_lightning"
        )
    return made
