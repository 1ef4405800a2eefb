"""Conformance: any provider, held against the reference in float64.

    check_attention(provider, request, context, case)
    check_linear(provider, request, context, num_tokens=7)
    check_moe(provider, request, context, num_tokens=7, load=MoeLoad.SPREAD)
    check_op(provider, request, context, size=OpSize(7))
    check_communicator(communicator, rank, size, dtype, device)   on every rank at once

Each raises AssertionError with what was compared. A provider that refuses a request is checked for
a reason, and nothing else.
"""

from chiplet.reference.kv_coding import encode as encode_kv
from chiplet.reference.ops import REFERENCE_OPS
from chiplet.reference.quantization import dequantize, random_weights
from chiplet.testing.conformance.attention import ATTENTION_CASES, check_attention, check_layout
from chiplet.testing.conformance.attention_inputs import AttentionCase
from chiplet.testing.conformance.communication import check_communicator
from chiplet.testing.conformance.guards import Placement
from chiplet.testing.conformance.linear import check_linear
from chiplet.testing.conformance.moe import MoeLoad, check_moe
from chiplet.testing.conformance.op_inputs import OpSize
from chiplet.testing.conformance.ops import check_op
from chiplet.testing.conformance.schemes import WEIGHT_SCHEMES
from chiplet.testing.conformance.tolerance import EPSILON, TORCH_DTYPES, assert_close
from chiplet.testing.conformance.verdict import is_served

__all__ = [
    "ATTENTION_CASES",
    "EPSILON",
    "REFERENCE_OPS",
    "TORCH_DTYPES",
    "WEIGHT_SCHEMES",
    "AttentionCase",
    "MoeLoad",
    "OpSize",
    "Placement",
    "assert_close",
    "check_attention",
    "check_communicator",
    "check_layout",
    "check_linear",
    "check_moe",
    "check_op",
    "dequantize",
    "encode_kv",
    "is_served",
    "random_weights",
]
