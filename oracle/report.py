# SPDX-License-Identifier: GPL-2.0-or-later
"""An outcome in words: what was checked, what was excused, and every disagreement with the command that replays it."""

from machine.iommu.unit import Walk
from oracle.outcome import Finding, Outcome


def summary(outcome: Outcome) -> str:
    """One line, with the exceptions and notes below it."""
    lines = [
        f"{outcome.oracle}: {outcome.checked:,} checked in {outcome.seconds:.1f} s ({outcome.rate:,.0f}/s), "
        f"seed {outcome.seed}: {_verdict(outcome)}"
    ]
    counts = ", ".join(f"{name} {count:,}" for name, count in outcome.counts.items() if count)
    if counts:
        lines.append(f"  {counts}")
    lines += [f"  known deviation, {count:,} times: {name}" for name, count in outcome.excused.items()]
    lines += [f"  note: {note}" for note in outcome.notes]
    if outcome.interrupted:
        lines.append(f"  interrupted; the same command with --from {outcome.next} goes on")
    return "\n".join(lines)


def _verdict(outcome: Outcome) -> str:
    count = len(outcome.findings)
    return "no disagreement" if not count else f"{count} disagreement{'s' if count > 1 else ''}"


def tell(outcome: Outcome, finding: Finding) -> str:
    """A disagreement: what was done, what each answered, both walks, and how to see it again."""
    lines = [f"{outcome.oracle}: disagreement about {' '.join(finding.kind)}"]
    if finding.program:
        lines[0] += f" after {finding.steps} steps (shrunk from {finding.shrunk_from})"
    for what, ours, model in finding.differences:
        lines += [f"  {what}", f"    ours:  {ours}", f"    model: {model}"]
    if finding.problem:
        lines.append(f"  {finding.problem}")
    if finding.our_walk is not None:
        lines += ["  our walk, from memory as it is now:", *(f"    {line}" for line in walk_lines(finding.our_walk))]
    if finding.model_walk:
        lines += ["  the model's own account:", *(f"    {line}" for line in finding.model_walk.splitlines())]
    if not finding.program:
        lines.append(f"  see it again with: pviommu oracle run {outcome.oracle} --seed {outcome.seed}")
        return "\n".join(lines)
    lines.append("  replay with:")
    lines.append(f"pviommu oracle run {outcome.oracle} --replay - <<'END'")
    lines.append(finding.program.rstrip("\n"))
    lines.append("END")
    return "\n".join(lines)


def walk_lines(walk: Walk) -> list[str]:
    """The entries of a walk, decoded, and where it ends."""
    lines = []
    for step in walk.steps:
        words = " ".join(f"{word:#018x}" for word in step.words)
        slot = f"[{step.slot}]" if step.slot is not None else ""
        lines.append(f"{step.name}{slot} at {step.maddr:#x}: {words}  {step.meaning}")
    if walk.blocked is not None:
        lines.append(f"blocked: {walk.blocked}")
    elif walk.maddr is not None:
        lines.append(f"reaches {walk.maddr:#x}")
    return lines
