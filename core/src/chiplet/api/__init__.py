"""The public contract: all that a plugin may import from Chiplet."""

from chiplet.api.attention import (
    AttentionImpl,
    AttentionPlan,
    AttentionProvider,
    AttentionRequest,
    HostPlanning,
    KvLayout,
    KvSpec,
    PlanStorage,
)
from chiplet.api.communication import (
    CommunicationProvider,
    CommunicationRequest,
    Communicator,
    GroupKind,
    SpmdPlatform,
    Topology,
)
from chiplet.api.compilation import (
    CompilationProvider,
    CompilationRequest,
    CompilingPlatform,
    StepCompiler,
)
from chiplet.api.executable import (
    ALL_SAMPLING,
    GREEDY,
    SETTINGS,
    DeviceState,
    Executable,
    HostInputs,
    InputLayout,
    Logprobs,
    Sampling,
    ShapeBucket,
    Step,
    StepInputs,
    StepLimits,
    StepOutputs,
    doubling,
)
from chiplet.api.features import Feature
from chiplet.api.lifecycle import PluginContext
from chiplet.api.linear import LinearImpl, LinearProvider, LinearRequest, Packed, RowSource
from chiplet.api.markers import hookimpl
from chiplet.api.models import ModelEntry
from chiplet.api.moe import ExpertWeights, MoeImpl, MoeProvider, MoeRequest
from chiplet.api.ops import Op, OpImpl, OpProvider, OpRequest
from chiplet.api.platform import (
    DeviceProbe,
    DoneEvent,
    Event,
    Execution,
    HostFacts,
    MemoryInfo,
    Platform,
)
from chiplet.api.proposals import Check, CheckStatus, Proposal
from chiplet.api.provider import BuildContext, Provider
from chiplet.api.quantization import (
    Activations,
    BlockShape,
    Coding,
    Granularity,
    LayerFacts,
    LinearWeights,
    QuantizationFormat,
    WeightScheme,
)
from chiplet.api.reference import Reference
from chiplet.api.stored import StoredCheckpoint, StoredFormat, StoredMatrix, StoredTensor
from chiplet.api.verdicts import No, Numerics, Reason, Tier, Verdict, Yes
from chiplet.api.versions import INTERFACE_VERSIONS
from chiplet.config import Dtype, EngineConfig
from chiplet.errors import ConfigError, ModelError
from chiplet.forward_batch import ForwardBatch, HostLengths

__all__ = [
    "ALL_SAMPLING",
    "GREEDY",
    "INTERFACE_VERSIONS",
    "Activations",
    "SETTINGS",
    "AttentionImpl",
    "AttentionPlan",
    "AttentionProvider",
    "AttentionRequest",
    "BlockShape",
    "BuildContext",
    "Check",
    "CheckStatus",
    "CommunicationProvider",
    "ConfigError",
    "CommunicationRequest",
    "Communicator",
    "CompilationProvider",
    "CompilationRequest",
    "CompilingPlatform",
    "Coding",
    "DeviceProbe",
    "DeviceState",
    "DoneEvent",
    "Dtype",
    "EngineConfig",
    "Event",
    "Executable",
    "Execution",
    "ExpertWeights",
    "Feature",
    "ForwardBatch",
    "GroupKind",
    "Granularity",
    "HostFacts",
    "HostInputs",
    "HostLengths",
    "HostPlanning",
    "InputLayout",
    "KvLayout",
    "KvSpec",
    "LayerFacts",
    "LinearImpl",
    "LinearProvider",
    "LinearRequest",
    "LinearWeights",
    "Logprobs",
    "MemoryInfo",
    "ModelEntry",
    "ModelError",
    "MoeImpl",
    "MoeProvider",
    "MoeRequest",
    "No",
    "Numerics",
    "Op",
    "OpImpl",
    "OpProvider",
    "OpRequest",
    "Packed",
    "PlanStorage",
    "Platform",
    "PluginContext",
    "Proposal",
    "Provider",
    "QuantizationFormat",
    "Reason",
    "Reference",
    "SpmdPlatform",
    "Sampling",
    "ShapeBucket",
    "Step",
    "StepCompiler",
    "StepInputs",
    "StepLimits",
    "StepOutputs",
    "RowSource",
    "StoredCheckpoint",
    "StoredFormat",
    "StoredMatrix",
    "StoredTensor",
    "Tier",
    "Topology",
    "Verdict",
    "WeightScheme",
    "Yes",
    "doubling",
    "hookimpl",
]
