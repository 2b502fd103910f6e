"""What models are compared with, as an evaluation asks for it: predictions piece by piece, in order."""

from typing import Protocol

from gemma4_quant.measuring.decoding import Piece
from gemma4_quant.measuring.kernels import Logits, Targets
from gemma4_quant.measuring.position_scores import PositionScores, compare, negative_log_likelihoods
from gemma4_quant.runner.session import Session


class Predictions(Protocol):
    """A reference's predictions at the scored positions of a piece."""

    def own_scores(self, targets: Targets, n_threads: int) -> PositionScores:
        """Return the reference's own scores, without divergence; raises NonFiniteError."""
        ...

    def compare(self, logits: Logits, targets: Targets, n_threads: int) -> PositionScores:
        """Compare a model's logits at the same positions with them; raises NonFiniteError."""
        ...


class Reference(Protocol):
    """Predictions for all scored positions of a text, asked for in order."""

    @property
    def records(self) -> bool:
        """Whether its predictions are stored as they are asked for, so that all must be."""
        ...

    def begin(self) -> None:
        """Forget what earlier windows held; a group of windows begins."""
        ...

    def predictions(self, piece: Piece, first: int) -> Predictions:
        """Return predictions for a piece, valid until the next is asked for.

        first: number of its first scored position among all those of the text.
        """
        ...


class StoredReference(Reference, Protocol):
    """Predictions out of a file."""

    @property
    def identity(self) -> bytes:
        """Return bytes that change when the file does."""
        ...

    @property
    def storage_error(self) -> float | None:
        """Standard error, in nats, that storing adds to the mean divergence; None where nothing was left out."""
        ...


class _ModelPredictions:
    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def own_scores(self, targets: Targets, n_threads: int) -> PositionScores:
        """See Predictions."""
        return PositionScores(negative_log_likelihoods(self._logits, targets, n_threads=n_threads))

    def compare(self, logits: Logits, targets: Targets, n_threads: int) -> PositionScores:
        """See Predictions."""
        return compare(self._logits, logits, targets, n_threads=n_threads)


class Recorder(Protocol):
    """Receiver of a reference's predictions, in order."""

    def record(self, logits: Logits, targets: Targets, n_threads: int) -> None:
        """Store the logits of some scored positions, (n, n_vocab) float32, and the tokens that followed them."""
        ...


class ModelReference:
    """A model that runs beside the others."""

    def __init__(self, session: Session, recorder: Recorder | None = None) -> None:
        """Take a session of the same size as the others'; recorder: also gets all predictions."""
        self.session = session
        self._recorder = recorder

    @property
    def records(self) -> bool:
        """See Reference."""
        return self._recorder is not None

    def begin(self) -> None:
        """See Reference."""
        self.session.clear()

    def predictions(self, piece: Piece, _first: int) -> _ModelPredictions:
        """See Reference."""
        logits = piece.run(self.session)
        if self._recorder is not None and len(piece.targets):
            self._recorder.record(logits, piece.targets, self.session.n_threads)
        return _ModelPredictions(logits)
