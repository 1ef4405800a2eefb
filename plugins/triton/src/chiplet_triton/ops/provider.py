"""The provider of operations other than attention and linear layers."""

from __future__ import annotations

from collections.abc import Mapping

from chiplet.api import (
    BuildContext,
    Dtype,
    Feature,
    No,
    Op,
    OpImpl,
    OpRequest,
    Tier,
    Verdict,
    Yes,
)
from chiplet_triton.device import DeviceTraits
from chiplet_triton.ops.elementwise import ElementwiseOps
from chiplet_triton.ops.sampling import Argmax, sample

_LOGIT_OPS = frozenset({Op.PENALIZE, Op.MASK_TOKENS, Op.SAMPLE})


class TritonOpsProvider:
    """Serves the operations that have a kernel here."""

    name = "triton"
    accepts: frozenset[Feature] = frozenset()

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits
        ops = ElementwiseOps(traits)
        self._ops: Mapping[Op, OpImpl] = {
            Op.EMBEDDING: ops.embedding,
            Op.RMS_NORM: ops.rms_norm,
            Op.ADD_RMS_NORM: ops.add_rms_norm,
            Op.ROTARY: ops.rotary,
            Op.SILU_MUL: ops.silu_mul,
            Op.PENALIZE: ops.penalize,
            Op.MASK_TOKENS: ops.mask_tokens,
            Op.SAMPLE: sample,
        }

    def assess(self, request: OpRequest) -> Verdict:
        """Yes for what it has."""
        if request.op is Op.ARGMAX:
            return Yes(Tier.GENERIC)
        if request.op not in self._ops:
            return No.because("op", f"{request.op} has no kernel here; torch's own is as good")
        if request.op in _LOGIT_OPS and request.dtype is not Dtype.FLOAT32:
            return No.because("dtype", f"logits in {request.dtype}; served: float32")
        return Yes(Tier.GENERIC)

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """The function; its kernel is compiled at the first launch."""
        if request.op is Op.ARGMAX:
            return Argmax(self._traits, context.torch_device)
        return self._ops[request.op]
