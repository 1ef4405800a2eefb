from torch import Tensor
from torch.nn import functional as F

from chiplet.api import BuildContext, No, Op, OpImpl, OpRequest, Tier, Verdict, Yes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Torch's own norm, in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


class NormProvider:
    """Serves the norm, in every type."""

    name = "fossil-norm"
    accepts = frozenset()

    def assess(self, request: OpRequest) -> Verdict:
        """A No carries a code, and text with the value and what is allowed."""
        if request.op is not Op.RMS_NORM:
            return No.because("op", f"{request.op}; only {Op.RMS_NORM} is served")
        return Yes(Tier.GENERIC, "torch's rms_norm")

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """Called once; what it returns is called in every step."""
        return rms_norm
