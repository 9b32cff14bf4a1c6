"""Several applications of the same first layer in a step, as one block with more rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from relu_diag.capture._ridden import Application, Gradients, Ridden, Weights
from relu_diag.capture.live import LiveBlock
from relu_diag.capture.sighting import Sighting

# A reader of an application: its name, and how many of that name came before.
Key = tuple[str, int]


def joined(seen: Sequence[Sighting]) -> Sighting:
    """Applications of one first layer as one block: its outputs are those of all layers that read any of them."""
    first = seen[0]
    if len(seen) == 1:
        return first
    places = {key: (one, place) for one in reversed(seen) for place, key in enumerate(_keys(one))}
    order = list(dict.fromkeys([key for one in seen for key in _keys(one)]))
    weights = _weights(first, [places[key] for key in order])
    applications = [_widened(part, weights, _keys(one), order) for one in seen for part in one.ridden.applications]
    return replace(
        first,
        readers=tuple(name for name, _ in order),
        ridden=Ridden(weights, tuple(applications)),
        dropout=any(one.dropout for one in seen),
        tied=any(one.tied for one in seen),
        elsewhere=any(one.elsewhere for one in seen),
        reruns=any(one.reruns for one in seen),
        from_data=all(one.from_data for one in seen),
        kinks_after=tuple(sorted({kink for one in seen for kink in one.kinks_after})),
        to_the_loss=all(one.to_the_loss for one in seen),
        live=_live(seen, [places[key] for key in order]),
        parameters=tuple({id(one): one for part in seen for one in part.parameters}.values()),
    )


def _keys(seen: Sighting) -> Iterator[Key]:
    """The readers of an application, in their order."""
    before: Counter[str] = Counter()
    for name in seen.readers:
        yield name, before[name]
        before[name] += 1


def _weights(first: Sighting, heads: Sequence[tuple[Sighting, int]]) -> Weights:
    """The weights of a block with all heads, each where an application has it."""
    return replace(
        first.ridden.weights,
        heads=tuple(one.ridden.weights.heads[place] for one, place in heads),
        head_biases=tuple(one.ridden.weights.head_biases[place] for one, place in heads),
    )


def _live(seen: Sequence[Sighting], heads: Sequence[tuple[Sighting, int]]) -> LiveBlock | None:
    """A way back to the parameters of all heads; None where there is none to some."""
    live = {id(one): one.live for one in seen}
    known = [(there, place) for one, place in heads if (there := live[id(one)]) is not None]
    if len(known) < len(heads):
        return None
    return replace(
        known[0][0],
        readers=tuple(there.readers[place] for there, place in known),
        reader_biases=tuple(there.reader_biases[place] for there, place in known),
    )


def _widened(part: Application, weights: Weights, own: Iterator[Key], order: Sequence[Key]) -> Application:
    """An application with all heads: one that does not read it has no gradient there."""
    places = {key: place for place, key in enumerate(own)}
    if len(places) == len(order):
        return part
    heads, gradients = [], []
    for key, H in zip(order, weights.heads, strict=True):
        place = places.get(key)
        heads.append(part.C.new_zeros(part.count, len(H)) if place is None else part.heads[place])
        if part.gradients is not None:
            gradients.append(H.new_zeros(H.shape) if place is None else part.gradients.heads[place])
    known = part.gradients
    by_weights = None if known is None else Gradients(known.W, known.bias, tuple(gradients))
    return replace(part, heads=tuple(heads), gradients=by_weights)
