"""Operations that XLA fuses by itself: core's own formulas are all that it needs."""

from __future__ import annotations

from chiplet.api import BuildContext, No, Op, OpImpl, OpRequest, Tier, Verdict, Yes

_FUSED = frozenset(Op) - {Op.SAMPLE}
"""Sampling sums in float64, which a TPU has not."""


class XlaOpsProvider:
    """Serves what is elementwise, a reduction or a gather."""

    name = "xla"
    accepts = frozenset()

    def assess(self, request: OpRequest) -> Verdict:
        """Yes to all but sampling."""
        if request.op not in _FUSED:
            return No.because("float64", f"{request.op} sums in float64, which a TPU has not")
        return Yes(Tier.VENDOR, "fused by the compiler")

    def build(self, request: OpRequest, context: BuildContext) -> OpImpl:
        """Core's formula, as it is traced into the step."""
        return context.reference(request)
