"""The provider of operations other than attention and linear layers."""

from __future__ import annotations

from collections.abc import Mapping

from chiplet.api import BuildContext, Feature, No, Op, OpImpl, OpRequest, Tier, Verdict, Yes
from chiplet_cpu.ops.elementwise import add_rms_norm, rms_norm, rotary, silu_mul
from chiplet_cpu.ops.sampling import sample

_OPS: Mapping[Op, OpImpl] = {
    Op.RMS_NORM: rms_norm,
    Op.ADD_RMS_NORM: add_rms_norm,
    Op.ROTARY: rotary,
    Op.SILU_MUL: silu_mul,
    Op.SAMPLE: sample,
}


class TorchOpsProvider:
    """Serves the operations for which there is something better than the reference."""

    name = "torch"
    accepts: frozenset[Feature] = frozenset()

    def assess(self, request: OpRequest) -> Verdict:
        """Yes for what it has."""
        if request.op not in _OPS:
            return No.because("op", "the reference is as good")
        return Yes(Tier.GENERIC)

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """The function."""
        return _OPS[request.op]
