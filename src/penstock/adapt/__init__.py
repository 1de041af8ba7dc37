"""Change a model that is trained already, and change it back.

    gated = insert(model, GateSkip(budget=0.75), where="layers.*")     # only its gates are trainable now
    train(gated, text)                                                 # or any loop, or a Trainer
    gated.calibrate(batches); gated.budget = 0.6
    gated.save("gates/"); gated.remove()                               # the model is what it was, bit for bit
    gated = load(model, "gates/")

A `Method` says what is put in: it has a name, the kinds of places it goes to, arguments that JSON can hold, and
`part(place)`, which returns the `Part` for a place. A part is a module: its parameters and buffers are the adapter. Its
`attach(place, ties)` ties it to the model's modules:

    ties.before(module, change)     change(args, kwargs) -> None or (args, kwargs)
    ties.after(module, change)      change(output, args, kwargs) -> None or output
    ties.around(module, call)       call(inner, *args, **kwargs) -> output, instead of the module
    ties.attention(core, call)      call(inner, core, q, k, v, mask, **kwargs), instead of the attention function

Changes and calls are methods of the part, so that a copy of the model has copies of them; what one call hands to another is
a `Passing`, which is not copied. A `Place` has what is there: `dim`, `index`, `branch.first` and `branch.last`, and of
attention `core`, `maps`, `out`, `heads`, `kv_heads`, `width`; linear maps and gated feed-forward layers are places of any
model, with attention or without. A part with a `penalty()` adds to the model's loss in training; a `BudgetPart` has scores
of tokens, and levels that calibration sets. Everything is undone by `remove`. A method is one file in
`penstock.adapt.methods`, exported here; `tests/adapt/test_adapters.py` holds it to its promises on every architecture: add
it to `tests/adapt/cases.py`.
"""

from penstock.adapt.adapter import Adapter, adapters_of, check, insert, remove
from penstock.adapt.anchors import anchors_of, merge_by_anchors
from penstock.adapt.encoder import DomainEncoder
from penstock.adapt.files import from_pretrained, load, save_pretrained
from penstock.adapt.gateon import GateON
from penstock.adapt.gcab import GCAB
from penstock.adapt.lanes import MultiLane
from penstock.adapt.method import BudgetPart, Method, Part, Passing, find
from penstock.adapt.methods.acm import ACMs, distil
from penstock.adapt.methods.codebook import Codebook, count_codes, fit_codes, force_codes, read_codes
from penstock.adapt.methods.gated_attention import GatedAttention
from penstock.adapt.methods.gateskip import GateSkip
from penstock.adapt.methods.heavy_hitters import HeavyHitters
from penstock.adapt.methods.jei_dnn import JEIDNN, EarlyExits
from penstock.adapt.methods.lf_steering import LFSteering, find_latents, fit_latents
from penstock.adapt.methods.liger import Liger
from penstock.adapt.methods.lineas import LinEAS, fit_steering
from penstock.adapt.methods.lizard import Lizard, teach
from penstock.adapt.methods.moh import MoH
from penstock.adapt.methods.norga import NoRGa, begin_task, set_task
from penstock.adapt.methods.pill import PILL, begin_stage, show_images
from penstock.adapt.methods.registers import Registers, find_registers
from penstock.adapt.methods.seer import SeerAttention
from penstock.adapt.methods.sf_attention import SFAttention
from penstock.adapt.methods.skip_middle import SkipMiddle
from penstock.adapt.methods.soft_injection import SoftInjection, collect_task
from penstock.adapt.methods.sparse import CATS, CHESS, TEAL, WINA
from penstock.adapt.methods.steering import Steering, activations, carry, fit_mapper, set_vector
from penstock.adapt.methods.tunable_experts import TunableExperts, expert_shares, resonance
from penstock.adapt.methods.vhr import VHR, head_divergence, reinforce
from penstock.adapt.mobile import MobileTL
from penstock.adapt.phatgoose import LoRAExpert, RoutedExperts
from penstock.adapt.places import Place, places
from penstock.adapt.prompts import MoCoOp, clip_text
from penstock.adapt.refusal import RefusalTokens
from penstock.adapt.scaling import ScaledVectors
from penstock.adapt.slots import SlotTTA, adapt_to
from penstock.adapt.spectrum import VectorFit
from penstock.adapt.tau import Dopamine
from penstock.adapt.ties import Ties
from penstock.adapt.training import Schedule, train
from penstock.adapt.unem import DirichletUNEM, GaussianUNEM
from penstock.adapt.upcycle import upcycle
from penstock.adapt.values import ValueNetwork, token_map
from penstock.adapt.vectors import TaskVector, merge

__all__ = [
    "CATS",
    "CHESS",
    "GCAB",
    "JEIDNN",
    "PILL",
    "TEAL",
    "VHR",
    "WINA",
    "ACMs",
    "Adapter",
    "BudgetPart",
    "Codebook",
    "DirichletUNEM",
    "DomainEncoder",
    "Dopamine",
    "EarlyExits",
    "GateON",
    "GateSkip",
    "GatedAttention",
    "GaussianUNEM",
    "HeavyHitters",
    "LFSteering",
    "Liger",
    "LinEAS",
    "Lizard",
    "LoRAExpert",
    "Method",
    "MoCoOp",
    "MoH",
    "MobileTL",
    "MultiLane",
    "NoRGa",
    "Part",
    "Passing",
    "Place",
    "RefusalTokens",
    "Registers",
    "RoutedExperts",
    "SFAttention",
    "ScaledVectors",
    "Schedule",
    "SeerAttention",
    "SkipMiddle",
    "SlotTTA",
    "SoftInjection",
    "Steering",
    "TaskVector",
    "Ties",
    "TunableExperts",
    "ValueNetwork",
    "VectorFit",
    "activations",
    "adapt_to",
    "adapters_of",
    "anchors_of",
    "begin_stage",
    "begin_task",
    "carry",
    "check",
    "clip_text",
    "collect_task",
    "count_codes",
    "distil",
    "expert_shares",
    "find",
    "find_latents",
    "find_registers",
    "fit_codes",
    "fit_latents",
    "fit_mapper",
    "fit_steering",
    "force_codes",
    "from_pretrained",
    "head_divergence",
    "insert",
    "load",
    "merge",
    "merge_by_anchors",
    "places",
    "read_codes",
    "reinforce",
    "remove",
    "resonance",
    "save_pretrained",
    "set_task",
    "set_vector",
    "show_images",
    "teach",
    "token_map",
    "train",
    "upcycle",
]
