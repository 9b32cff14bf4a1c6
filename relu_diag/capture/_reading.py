"""What the graph of a loss says about blocks, and the same without the graph, to be found again in another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.autograd.graph import Node

from relu_diag.capture._graph import Graph, Passage, Product, slopes_of
from relu_diag.capture._weights import Weight

# Of what a reason is that a loss is computed from derivatives.
DERIVATIVES = "the loss"
_COMPUTED = (
    "it is computed from derivatives of the network; a pass under a part of it without them can be watched: give the "
    "monitor loss=lambda module, batch: ..."
)


@dataclass(slots=True, eq=False)
class Use:
    """A product that reads an activation.

    Attributes:
        product: The product.
        bias: The bias added to it, or None.
        kinks: Operations with a kink between it and the loss.
    """

    product: Product
    bias: nn.Parameter | None
    kinks: tuple[Node, ...]


@dataclass(slots=True, eq=False)
class Facts:
    """What is said of a block in the same words in every step.

    Attributes:
        hidden: Name of the first layer.
        readers: Names of the layers that read it.
        tied: Whether two of them are the same parameter.
        parameters: The parameters that take part.
        trained: The slope of a PReLU, or None.
    """

    hidden: str
    readers: tuple[str, ...]
    tied: bool
    parameters: tuple[nn.Parameter, ...]
    trained: nn.Parameter | None


@dataclass(slots=True, eq=False)
class Candidate:
    """A product whose activation other products read.

    Attributes:
        hidden: The product.
        passage: Its activation.
        uses: What reads it.
        obstacle: Why that makes no block, as far as the graph tells; empty where it does.
        facts: What is the same in every step, by which of the uses had a gradient.
    """

    hidden: Product
    passage: Passage
    uses: tuple[Use, ...]
    obstacle: str
    facts: dict[tuple[int, ...], Facts]


@dataclass(slots=True, eq=False)
class Reading:
    """What a graph says about blocks.

    Attributes:
        candidates: What may be a block, in the order in which they ran.
        reasons: For ``one -> other``, an activation between two layers that is no block's, what stands between; for a
            first layer, what is wrong with it.
    """

    candidates: tuple[Candidate, ...]
    reasons: Mapping[str, str]


def read(
    nodes: Sequence[Node], module: nn.Module, layers: Mapping[Node, nn.Linear], gathered: Mapping[int, str]
) -> tuple[Reading, bool]:
    """What a graph says, and whether all graphs of its form say the same."""
    graph = Graph(nodes, module, layers, gathered)
    reasons = graph.opaque()
    if graph.holds_derivatives:
        return Reading((), reasons | {DERIVATIVES: _COMPUTED}), True
    products = {product.node: product for product in graph.products()}
    found: dict[Node, list[tuple[Product, Passage]]] = {}
    for reader in products.values():
        passage = graph.passage(reader, products)
        if isinstance(passage, Passage):
            found.setdefault(passage.product.node, []).append((reader, passage))
        elif passage:
            sources = sorted({source.layer for source in graph.sources(reader, products)})
            reasons[f"{', '.join(sources)} -> {reader.layer}"] = passage
    candidates = [_candidate(graph, products[node], readers) for node, readers in found.items()]
    lasting = not any(product.weight.derived for product in products.values()) and all(map(_lasting, candidates))
    return Reading(tuple(candidates), reasons), lasting


def _candidate(graph: Graph, hidden: Product, readers: Sequence[tuple[Product, Passage]]) -> Candidate:
    """A product and what reads its activation."""
    passage = readers[0][1]
    obstacle = ""
    if any(other.top is not passage.top for _, other in readers):
        obstacle = "its readers see different activations"
    elif graph.read_before(passage):
        obstacle = "its pre-activations are read by more than the activation"
    elif any(product.bias_is_made for product in (hidden, *(reader for reader, _ in readers))):
        obstacle = "a bias is computed from others, and the graph does not keep it"
    uses = [Use(reader, graph.bias_behind(reader), tuple(graph.kinks_behind(reader))) for reader, _ in readers]
    return Candidate(hidden, passage, tuple(uses), obstacle, {})


def _lasting(candidate: Candidate) -> bool:
    """Whether the form of a graph says all of it: nothing is told by numbers, and all parameters are in the graph."""
    passage = candidate.passage
    if passage.fold is not None or (slopes_of(passage) is None and not passage.dropout):
        return False
    parameters = [candidate.hidden.weight.parameter, passage.bias]
    for use in candidate.uses:
        parameters += [use.product.weight.parameter, use.bias]
    return all(parameter is None or parameter.requires_grad for parameter in parameters)


@dataclass(frozen=True, slots=True, eq=False)
class _KeptProduct:
    """A product without its graph: the place of its node."""

    node: int
    weight: Weight
    bias: nn.Parameter | None
    bias_is_made: bool

    @classmethod
    def of(cls, product: Product, places: Mapping[Node, int]) -> _KeptProduct:
        return cls(places[product.node], product.weight, product.bias, product.bias_is_made)

    def at(self, nodes: Sequence[Node]) -> Product:
        return Product(nodes[self.node], self.weight, self.bias, self.bias_is_made)


@dataclass(frozen=True, slots=True, eq=False)
class _KeptUse:
    """A use without its graph."""

    product: _KeptProduct
    bias: nn.Parameter | None
    kinks: tuple[int, ...]

    def at(self, nodes: Sequence[Node]) -> Use:
        return Use(self.product.at(nodes), self.bias, tuple([nodes[place] for place in self.kinks]))


@dataclass(frozen=True, slots=True, eq=False)
class _KeptCandidate:
    """A candidate without its graph."""

    hidden: _KeptProduct
    bias: nn.Parameter | None
    top: int
    activation: tuple[int, ...]
    dropout: bool
    uses: tuple[_KeptUse, ...]
    obstacle: str
    facts: dict[tuple[int, ...], Facts]

    @classmethod
    def of(cls, candidate: Candidate, places: Mapping[Node, int]) -> _KeptCandidate:
        passage = candidate.passage
        return cls(
            hidden=_KeptProduct.of(candidate.hidden, places),
            bias=passage.bias,
            top=places[passage.top],
            activation=tuple(places[node] for node in passage.nodes),
            dropout=passage.dropout,
            uses=tuple(
                _KeptUse(_KeptProduct.of(use.product, places), use.bias, tuple(places[node] for node in use.kinks))
                for use in candidate.uses
            ),
            obstacle=candidate.obstacle,
            facts=candidate.facts,
        )

    def at(self, nodes: Sequence[Node]) -> Candidate:
        hidden = self.hidden.at(nodes)
        activation = frozenset([nodes[place] for place in self.activation])
        passage = Passage(hidden, self.bias, nodes[self.top], activation, self.dropout, None)
        return Candidate(hidden, passage, tuple([use.at(nodes) for use in self.uses]), self.obstacle, self.facts)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A reading without its graph, which must not be kept alive."""

    candidates: tuple[_KeptCandidate, ...]
    reasons: Mapping[str, str]

    @classmethod
    def of(cls, reading: Reading, nodes: Sequence[Node]) -> Kept:
        places = {node: place for place, node in enumerate(nodes)}
        return cls(tuple(_KeptCandidate.of(one, places) for one in reading.candidates), reading.reasons)

    def at(self, nodes: Sequence[Node]) -> Reading:
        return Reading(tuple([one.at(nodes) for one in self.candidates]), self.reasons)
