"""Shapes of known models, stated peaks of cards, and the cost of a build's floor by arithmetic. Pure.

Every number of a shape is that of the model's published config. Costs are per response position and for three models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VOCABULARY = 151_936
"""Tokens of the Qwen2.5 family: every output layer is read that far. The one of 7B has 128 rows more."""
MODELS = 3
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder's sizes, under the names of transformers' configs. model_type: qwen2 or llama."""

    model_type: str = "qwen2"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool

    @property
    def body_weights(self) -> int:
        """Entries of all matrices that a token is multiplied with, without embeddings and output layer."""
        size = self.hidden_size // self.num_attention_heads
        attention = self.hidden_size * size * 2 * (self.num_attention_heads + self.num_key_value_heads)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    def body_flop(self, length: int) -> float:
        """Of a forward pass, per token of a sequence of `length` tokens: two a weight, and the causal attention."""
        return 2 * self.body_weights + 2 * self.num_hidden_layers * self.hidden_size * length

    def head_flop(self, vocabulary: int) -> float:
        """Of the output layer, per response position."""
        return 2 * self.hidden_size * vocabulary


SHAPES = {
    "0.5B": Shape(
        vocab_size=VOCABULARY, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "1.5B": Shape(
        vocab_size=VOCABULARY, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "7B": Shape(
        vocab_size=VOCABULARY + 128, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
    ),
    "135M": Shape(
        model_type="llama", vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "tiny": Shape(
        vocab_size=136, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Qwen2.5 of three sizes, SmolLM2-135M, and one for the dry run, whose output layer is wider than its vocabulary."""
TINY_VOCABULARY = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card's peaks as its maker states them, without sparsity: FLOP/s of products by kind, bytes/s of its memory."""

    name: str
    half: float
    tf32: float
    float32: float
    memory: float


CARDS = (
    Card(name="H200", half=989e12, tf32=494e12, float32=67e12, memory=4.8e12),
    Card(name="H100 PCIe", half=756e12, tf32=378e12, float32=51e12, memory=2.0e12),
    Card(name="H100", half=989e12, tf32=494e12, float32=67e12, memory=3.35e12),
    Card(name="A100-SXM4-40GB", half=312e12, tf32=156e12, float32=19.5e12, memory=1.555e12),
    Card(name="A100-PCIE-40GB", half=312e12, tf32=156e12, float32=19.5e12, memory=1.555e12),
    Card(name="A100", half=312e12, tf32=156e12, float32=19.5e12, memory=2.0e12),
)
"""The first whose name is part of the device's is the device's."""
DEFAULT_CARD = CARDS[2]
"""H100 SXM, which the arithmetic is shown for where no GPU is."""


def card_of(device_name: str) -> Card | None:
    """The card that torch names so; None for one that is not in the list."""
    return next((card for card in CARDS if card.name in device_name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A part of a build: FLOP or bytes per response position; and the shares of the card's peak that are assumed to be
    reached, the higher first.
    """

    part: str
    way: str
    amount: float
    unit: str
    peak: float
    shares: tuple[float, float]

    @property
    def micros(self) -> tuple[float, float]:
        """Microseconds per response position, at the higher share and at the lower."""
        fast, slow = (1e6 * self.amount / (self.peak * share) for share in self.shares)
        return fast, slow


EAGER_BYTES = 1405
"""Bytes that twelve eager passes read and write for an entry of the vocabulary, three models together: each of their
elementwise operations counted as reads and a write of float32."""
READS = 4
"""Times that a single kernel has to read the logits: normalisers; D_t; partitions of the teacher; scores and tails."""


def floor_costs(shape: Shape, vocabulary: int, card: Card) -> Iterator[Cost]:
    """What a build of three models costs at least, and what it costs in the plain way; one response token a token."""
    bodies = MODELS * 2.0 * shape.body_weights
    heads = MODELS * shape.head_flop(vocabulary)
    once = MODELS * FLOAT32_BYTES * READS
    yield Cost(part="bodies", way="half precision", amount=bodies, unit="FLOP", peak=card.half, shares=(0.4, 0.3))
    yield Cost(
        part="output layers", way="float32, no tensor cores", amount=heads, unit="FLOP", peak=card.float32,
        shares=(0.75, 0.75),
    )  # fmt: skip
    yield Cost(
        part="output layers", way="half-precision inputs, float32 sums", amount=heads, unit="FLOP", peak=card.half,
        shares=(0.5, 0.4),
    )  # fmt: skip
    yield Cost(
        part="vocabulary", way=f"twelve eager passes, {EAGER_BYTES:,} bytes an entry",
        amount=float(EAGER_BYTES * vocabulary), unit="bytes", peak=card.memory, shares=(0.9, 0.6),
    )  # fmt: skip
    yield Cost(
        part="vocabulary", way=f"three float32 logits read {READS} times, {once} bytes an entry",
        amount=float(once * vocabulary), unit="bytes", peak=card.memory, shares=(0.9, 0.6),
    )  # fmt: skip


def floor_table(shape: Shape, vocabulary: int, card: Card) -> list[dict[str, Any]]:
    """`floor_costs` as plain values for a results file."""
    return [
        {
            "part": cost.part,
            "way": cost.way,
            "amount": cost.amount,
            "unit": cost.unit,
            "shares": list(cost.shares),
            "micros": list(cost.micros),
        }
        for cost in floor_costs(shape, vocabulary, card)
    ]
