# SPDX-License-Identifier: GPL-2.0-or-later
"""Lint rules about what a call leaves behind: init and its numbers, refusals that stick, pages and regions replaced."""

from collections.abc import Iterator

from abi.lint import Subject, rule
from abi.lint_contract import answered


@rule(
    "separate-init",
    "contract",
    "note",
    "Frediano Ziglio on v6",
    "do what init does on the first alloc_context, with defaults from the domain's configuration",
)
def separate_init(s: Subject) -> Iterator[tuple[str, str]]:
    """A set-up call that every guest has to make first and can get wrong once."""
    if s.abi.has("init"):
        yield "init", "nothing works before it, and there is no second try"


@rule(
    "init-falls-through",
    "contract",
    "error",
    "defect A2",
    "end init's case; a table of handlers cannot lose a break",
)
def init_falls_through(s: Subject) -> Iterator[tuple[str, str]]:
    """init goes on into alloc_context on the same bytes."""
    if s.contract is not None and s.contract.init_alters:
        yield "init", "allocates a context on the same bytes, writes its number over max_ctx_no and answers for it"


@rule(
    "count-wraps",
    "contract",
    "error",
    "defect A3",
    "refuse every count that does not fit the field that keeps it",
)
def count_wraps(s: Subject) -> Iterator[tuple[str, str]]:
    """A count from the guest that is cut to 16 bits."""
    if s.contract is not None and s.contract.init_wraps:
        yield "init, max_ctx_no", "0xffff stops the hypervisor, even after init; 0x10000 means no contexts for ever"


@rule(
    "refusal-poisons",
    "contract",
    "error",
    "defects C2, C8",
    "change nothing on a path that refuses",
)
def refusal_poisons(s: Subject) -> Iterator[tuple[str, str]]:
    """A refused call that leaves the object unusable."""
    if s.contract is not None and s.contract.refusal_marks:
        yield "free_context", "after -EBUSY nothing can be attached to the context any more"
    if s.contract is not None and s.contract.init_sticks:
        yield "init", "after -ENOMEM there is no second try"


@rule(
    "no-access-accepted",
    "contract",
    "warning",
    "defect H1",
    "refuse a mapping that is neither readable nor writeable",
)
def no_access_accepted(s: Subject) -> Iterator[tuple[str, str]]:
    """A map without any permission counts as done and maps nothing."""
    for row, tested in answered(s):
        if row.name == "map_pages" and "no-access" not in tested:
            yield row.name, "without readable and writeable: success, mapped counts it, nothing is mapped"


@rule(
    "range-unchecked",
    "contract",
    "error",
    "defect H2",
    "refuse a range that ends beyond max_iova_addr",
)
def range_unchecked(s: Subject) -> Iterator[tuple[str, str]]:
    """Device frames beyond the reported limit are accepted and alias lower ones."""
    for row, tested in answered(s):
        if row.name in ("map_pages", "unmap_pages") and "out-of-range" not in tested:
            yield f"{row.name}, dfn", "not held against max_iova_addr; high bits are dropped"


@rule(
    "reserved-range-entered",
    "contract",
    "error",
    "defects D1, D2",
    "test every device frame of the range, not the first one",
)
def reserved_range_entered(s: Subject) -> Iterator[tuple[str, str]]:
    """The check for reserved regions looks at the first page only."""
    if s.contract is not None:
        for name in sorted(s.contract.reserved_once):
            yield name, "a range that enters a reserved region further on passes the check"


@rule(
    "silent-overwrite",
    "contract",
    "error",
    "defect D5; Robin Murphy on the Linux driver v2 (quietly replaced entries)",
    "fail the move with an error when something is mapped where the region has to go",
)
def silent_overwrite(s: Subject) -> Iterator[tuple[str, str]]:
    """Attaching a device replaces what the guest mapped."""
    if s.contract is not None and s.contract.overwrites:
        yield "reattach_device", "the device's reserved regions replace mappings of the guest without a word"
