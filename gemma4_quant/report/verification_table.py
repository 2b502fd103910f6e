"""What verify found as plain text: a line for each type, faults, notes, and tensors when they are asked for."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from gemma4_quant.verification import Finding, TensorResult, VerifyResult

_MAX_FINDINGS = 20


def verification_table(result: VerifyResult, *, with_tensors: bool = False) -> str:
    """Return the report: types and their errors, then each part with its findings, then the verdict."""
    lines = [*_type_lines(result.tensors), ""]
    if with_tensors:
        lines += [*_tensor_lines(result.tensors), ""]
    for part in result.parts:
        n_faults = len(part.faults)
        verdict = "ok" if not n_faults else f"{n_faults} fault{'s' if n_faults > 1 else ''}"
        lines.append(f"{part.name}: {verdict} ({part.n_compared:,} {part.unit})")
        lines += _finding_lines(part.faults, "  fault: ")
        lines += _finding_lines([each for each in part.findings if not each.is_fault], "  note: ")
    verdict = "agrees" if result.is_ok else "does not agree"
    lines += ["", f"{result.path.name} {verdict} with {result.against} ({result.seconds:.1f} s)"]
    return "\n".join(lines)


def _type_lines(tensors: Sequence[TensorResult]) -> Iterator[str]:
    yield f"{'type':<8} {'tensors':>7} {'exact':>6}  {'error %':>8} {'SNR dB':>7}  worst tensor and row"
    by_type = sorted(tensors, key=lambda tensor: tensor.type)
    for kind, members in groupby(by_type, key=lambda tensor: tensor.type):
        group = list(members)
        worst = max(group, key=lambda tensor: tensor.relative_error)
        yield (
            f"{kind:<8} {len(group):>7} {sum(tensor.is_exact for tensor in group):>6}  {_error(worst)}"
            f"  {worst.name}" + ("" if worst.relative_error == 0 else f", row {worst.worst_row}: {_row_error(worst)}")
        )


def _tensor_lines(tensors: Sequence[TensorResult]) -> Iterator[str]:
    width = max([6, *(len(tensor.name) for tensor in tensors)])
    yield f"{'tensor':<{width}} {'type':<8} {'error %':>8} {'SNR dB':>7}  {'worst row':>9}  {'its error':>9}"
    for tensor in tensors:
        exact = "  exact" if tensor.is_exact else f"  {tensor.worst_row:>9}  {_row_error(tensor):>9}"
        yield f"{tensor.name:<{width}} {tensor.type:<8} {_error(tensor)}{exact}"


def _error(tensor: TensorResult) -> str:
    snr = "∞" if tensor.snr_db is None else f"{tensor.snr_db:.1f}"
    return f"{100 * tensor.relative_error:>8.3g} {snr:>7}"


def _row_error(tensor: TensorResult) -> str:
    return f"{100 * tensor.worst_row_error:.3g} %"


def _finding_lines(findings: Sequence[Finding], prefix: str) -> Iterator[str]:
    for finding in findings[:_MAX_FINDINGS]:
        yield f"{prefix}{finding.subject} {finding.problem}"
    if len(findings) > _MAX_FINDINGS:
        yield f"{prefix}{len(findings) - _MAX_FINDINGS} more (--json lists all)"
