# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that makes a network namespace, run in a process of its own so that nobody else enters it.

``python -m machine.network.enter_namespace FD LINK ROLE`` with FD an inherited Unix socket, LINK ``veth`` or ``tap``,
ROLE ``peer`` (the far end has an address and the kernel answers) or ``echo`` (the far end is a second raw socket).
It sends one JSON object, ``{}`` with the descriptors of the near end and, for ``echo``, of the far end, or
``{"error": "one line"}``, and exits.  The descriptors keep the namespace alive; when the last one is closed the kernel
removes it with all that is in it, so nothing is ever left behind.

Inside: ``lo``; and a veth pair ``near``/``far``, or a TAP device ``far``.  Offloads are off, so that checksums are
real; IPv6 gets no address, so that nothing is said that nobody asked for (Linux Documentation/networking/
ip-sysctl.rst, addr_gen_mode).
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final

from machine.network.packet_socket import ETH_P_ALL, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING, SOL_PACKET
from machine.network.wire import MTU, PEER_IP, PEER_MAC, PREFIX_LENGTH

CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000
TUNSETIFF: Final = 0x4004_54CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
SO_RCVBUFFORCE: Final = 33
IN6_ADDR_GEN_MODE_NONE: Final = 1
RECEIVE_BUFFER: Final = 16 << 20
NEAR_MAC: Final = "02:50:9e:00:00:ff"
RAW_MTU: Final = MTU + 4
"""Of a device whose end is a raw socket: room for a VLAN tag around a full packet."""
OFFLOADS: Final = (
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
)


class SetupError(Exception):
    """A step that this host refused."""


@contextlib.contextmanager
def step(what: str, hint: str = "") -> Iterator[None]:
    """Name the step in the error that comes out of it."""
    from pyroute2 import NetlinkError

    try:
        yield
    except OSError as error:
        raise SetupError(f"cannot {what}: {error.strerror or error}{hint and f' ({hint})'}") from error
    except NetlinkError as error:
        raise SetupError(f"cannot {what}: {os.strerror(error.code)}{hint and f' ({hint})'}") from error


def unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def enter_new_namespace() -> None:
    """A new network namespace; with a new user namespace around it unless this user may do without."""
    try:
        unshare(CLONE_NEWNET)
    except OSError:
        with step(
            "create a user and network namespace",
            "needs root or unprivileged user namespaces, and user.max_user_namespaces and max_net_namespaces above 0",
        ):
            unshare(CLONE_NEWUSER | CLONE_NEWNET)


def quieten(route: Any, index: int) -> None:
    """No IPv6 address, so no router solicitations or multicast reports; nothing to do on a kernel without IPv6."""
    from pyroute2 import NetlinkError

    family = {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE]]}
    try:
        route.link("set", index=index, IFLA_AF_SPEC={"attrs": [["AF_INET6", family]]})
    except NetlinkError as error:
        if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise


def switch_offloads_off(name: str) -> None:
    from pyroute2.ethtool.ioctl import IoctlEthtool

    ethtool = IoctlEthtool(name)
    try:
        for offload in OFFLOADS:
            ethtool.set_offload_flag(offload, 0)
    finally:
        ethtool.close()


def raw_socket(name: str) -> socket.socket:
    """Every frame that arrives at device ``name``, and a way to send from it."""
    handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    handle.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    try:
        handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:  # root outside any user namespace may go past net.core.rmem_max, others up to it
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    handle.bind((name, ETH_P_ALL))
    return handle


def open_tap(name: str) -> int:
    """The file of a new TAP device; the device lives as long as the file."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def build(link: str, echo: bool) -> list[int]:
    """Make the namespace; the descriptors to hand over."""
    try:
        from pyroute2 import IPRoute
    except ImportError as error:
        raise SetupError(f"cannot import pyroute2: {error} (pip install pyroute2)") from error
    enter_new_namespace()
    far_mac = PEER_MAC.hex(":")
    far_mtu = RAW_MTU if echo else MTU
    descriptors = []
    with IPRoute() as route:
        with step("bring up the loopback device"):
            route.link("set", index=1, state="up")
        if link == "veth":
            peer = {"ifname": "far", "address": far_mac, "mtu": far_mtu}
            with step("create a veth pair"):
                route.link("add", ifname="near", kind="veth", address=NEAR_MAC, mtu=RAW_MTU, peer=peer)
        else:
            with step("create a TAP device", "needs /dev/net/tun"):
                descriptors.append(open_tap("far"))
                route.link("set", index=route.link_lookup(ifname="far")[0], address=far_mac, mtu=far_mtu)
        for name in ("far", "near") if link == "veth" else ("far",):
            index = route.link_lookup(ifname=name)[0]
            with step(f"switch off IPv6 on {name}"):
                quieten(route, index)
            if link == "veth":
                with step(f"switch off the offloads of {name}"):
                    switch_offloads_off(name)
            with step(f"bring up {name}"):
                if name == "far" and not echo:
                    route.addr("add", index=index, address=PEER_IP, prefixlen=PREFIX_LENGTH)
                route.link("set", index=index, state="up")
        with step("open a packet socket"):
            if link == "veth":
                descriptors.append(raw_socket("near").detach())
            if echo:
                descriptors.append(raw_socket("far").detach())
    return descriptors


def main(arguments: list[str]) -> int:
    descriptor, link, role = arguments
    with socket.socket(fileno=int(descriptor)) as channel:
        try:
            descriptors = build(link, role == "echo")
        except SetupError as error:
            channel.send(json.dumps({"error": str(error)}).encode())
            return 1
        socket.send_fds(channel, [b"{}"], descriptors)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
