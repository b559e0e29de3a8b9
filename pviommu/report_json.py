# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports, walks and tables as plain dictionaries for ``--json``.  Addresses and raw words are hexadecimal strings."""

from dataclasses import asdict
from typing import Any

from base.units import format_sbdf
from machine.iommu.unit import Walk
from testbed.demonstrations import Blocked
from testbed.packets import Report
from testbed.tables import PAGE_NAMES, Leaves, Table


def report_as_dict(report: Report) -> dict[str, Any]:
    """Everything a :class:`Report` says."""
    return {
        "backend": report.backend,
        "profile": report.profile,
        "guest": report.guest,
        "wire": report.wire,
        "ok": report.ok,
        "failures": report.failures,
        "interrupts": report.interrupts,
        "packets": {
            "sent": report.packets_sent,
            "returned": report.packets_returned,
            "bytes_compared": report.bytes_compared,
            "seconds": round(report.seconds, 6),
            "per_second": round(report.packets_per_second, 1),
        },
        "stream": asdict(report.stream)
        | {
            "packets_per_second": round(report.stream.packets_per_second, 1),
            "packets_per_cpu_second": round(report.stream.packets_per_cpu_second, 1),
        }
        if report.stream is not None
        else None,
        "hypercalls": report.hypercalls,
        "pages": {"mapped": report.pages_mapped, "unmapped": report.pages_unmapped},
        "superpages": {"folded": report.folds, "split": report.splits},
        "iotlb": {"hits": report.iotlb_hits, "misses": report.iotlb_misses},
        "invalidations": report.invalidations,
        "faults": report.faults,
        "blocked": [_blocked(blocked) for blocked in report.blocked],
        "copy": asdict(report.copy) if report.copy is not None else None,
        "leaks": report.leaks,
        "leaked": sum(abs(count) for count in report.leaks.values()),
        "kernel_log": report.kernel_log,
    }


def _blocked(blocked: Blocked) -> dict[str, Any]:
    fault, reported = blocked.fault, blocked.reported
    return {
        "title": blocked.title,
        "device": format_sbdf(blocked.device),
        "iova": hex(fault.iova),
        "write": fault.write,
        "code": fault.code,
        "name": fault.name,
        "record": [hex(word) for word in fault.record],
        "reported_by_hypervisor": reported is not None,
        "walk": walk_as_dict(blocked.walk),
    }


def walk_as_dict(walk: Walk) -> dict[str, Any]:
    """A page walk, step by step."""
    return {
        "device": format_sbdf(walk.sid),
        "iova": hex(walk.iova),
        "write": walk.write,
        "steps": [
            {
                "name": step.name,
                "level": step.level,
                "slot": step.slot,
                "maddr": hex(step.maddr),
                "words": [hex(word) for word in step.words],
                "meaning": step.meaning,
            }
            for step in walk.steps
        ],
        "maddr": hex(walk.maddr) if walk.maddr is not None else None,
        "page_size": walk.page_size,
        "readable": walk.readable,
        "writable": walk.writable,
        "blocked": walk.blocked,
    }


def table_as_dict(table: Table) -> dict[str, Any]:
    """A tree of tables."""
    return {
        "level": table.level,
        "maddr": hex(table.maddr),
        "iova": hex(table.iova),
        "used": table.used,
        "content": [_leaves(part) if isinstance(part, Leaves) else table_as_dict(part) for part in table.content],
    }


def _leaves(leaves: Leaves) -> dict[str, Any]:
    return {
        "iova": hex(leaves.iova),
        "maddr": hex(leaves.maddr),
        "size": PAGE_NAMES[leaves.order],
        "count": leaves.count,
        "rights": leaves.rights,
        "first_entry": hex(leaves.first_entry),
    }
