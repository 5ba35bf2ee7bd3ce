"""The deployed form of a trained backbone."""

from collections.abc import Mapping

from torch import Tensor

from .pelk import PeLK
from .weights.checkpoint import MASK_SUFFIX


def deploy_state_dict(backbone: PeLK, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the deployed form from that of a trained PeLK backbone.

    Args:
        backbone: A backbone built with ``deploy=False`` and the trained model's arguments; it is converted on the way.
        state_dict: State dict of the trained backbone.

    Returns:
        What a backbone built with ``deploy=True`` loads strictly.

    Raises:
        RuntimeError: If keys or shapes do not match.
        ValueError: If the branches cannot be merged.
    """
    own = backbone.state_dict()
    backbone.load_state_dict(
        {key: value for key, value in state_dict.items() if not key.endswith(MASK_SUFFIX) or key in own}
    )
    backbone.eval()
    backbone.switch_to_deploy()
    return backbone.state_dict()
