import torch
from torch import Tensor

from chiplet.api import (
    BuildContext,
    ExpertWeights,
    Feature,
    MoeImpl,
    MoeRequest,
    No,
    Tier,
    Verdict,
    Yes,
)


class LoopMoe:
    """One expert after another, on the tokens that picked it."""

    def __init__(self, request: MoeRequest) -> None:
        self.request = request

    def pack(self, weights: ExpertWeights) -> tuple[Tensor, Tensor]:
        return weights.gate_up, weights.down

    def run(self, x: Tensor, router_logits: Tensor, packed: tuple[Tensor, Tensor]) -> Tensor:
        gate_up, down = packed
        probabilities = torch.softmax(router_logits.float(), dim=-1)
        weights, experts = probabilities.topk(self.request.top_k, dim=-1)
        if self.request.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(self.request.num_experts):
            tokens, places = (experts == expert).nonzero(as_tuple=True)
            gate, up = (x[tokens] @ gate_up[expert].T).chunk(2, dim=-1)
            y = (torch.nn.functional.silu(gate) * up) @ down[expert].T
            total.index_add_(0, tokens, y.float() * weights[tokens, places, None])
        return total.to(x.dtype)


class LoopProvider:
    name = "fossil-moe"
    accepts: frozenset[Feature] = frozenset()

    def assess(self, request: MoeRequest) -> Verdict:
        if request.top_k > request.num_experts:
            return No.because("top_k", f"top_k {request.top_k} of {request.num_experts}")
        return Yes(Tier.GENERIC, note="one expert after another")

    def build(self, request: MoeRequest, context: BuildContext) -> MoeImpl:
        return LoopMoe(request)
