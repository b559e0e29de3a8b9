# SPDX-License-Identifier: GPL-2.0-or-later
"""Which wire this host can give.

============  ===========================================================================================
in-process    an ARP and ICMP echo responder written here; works everywhere
namespace     the host's own kernel in a network namespace, across a veth pair
tap           the same kernel and namespace, reached through a TAP device
auto          the first of namespace, tap, in-process that works
============  ===========================================================================================

With ``echo`` nothing answers: every frame comes back as it was sent.  Across a namespace it has then been through
the real kernel's devices twice; what turns it around at the far end is a second raw socket there.
"""

from typing import Final

from machine.network.peer import LoopWire, PeerWire
from machine.network.wire import Wire, WireError

PREFERENCES: Final = ("auto", "namespace", "tap", "in-process")


def open_wire(prefer: str = "auto", echo: bool = False) -> Wire:
    """A plugged-in wire of the kind ``prefer``; :class:`WireError` says why this host cannot give it."""
    from machine.network.namespace import open_namespace

    if prefer not in PREFERENCES:
        raise WireError(f"there is no wire named {prefer!r}; choose one of {', '.join(PREFERENCES)}")
    if prefer == "in-process":
        return LoopWire() if echo else PeerWire()
    if prefer != "auto":
        return open_namespace("veth" if prefer == "namespace" else "tap", echo)
    reason = ""
    for link in ("veth", "tap"):
        try:
            return open_namespace(link, echo)
        except WireError as error:
            reason = reason or str(error)
    return LoopWire(reason) if echo else PeerWire(reason)
