# SPDX-License-Identifier: GPL-2.0-or-later
"""The test NIC from its datasheet, over the fake hypervisor's translation, with a station at the other end.

Only what a driver can see of it; the card with all its corners is the machine's.
"""

import struct

from base.units import PAGE_SIZE
from guest_driver.net import wire

BAR = 0xE1000000
MAC = bytes.fromhex("025000000001")
PEER_MAC = bytes.fromhex("025000000002")
PEER_IP = bytes([10, 0, 0, 1])
DESCRIPTOR = struct.Struct("<QHHHH")


class FakeNic:
    """Registers at ``BAR``.  ``faults``: accesses that the IOMMU refused."""

    def __init__(self, xen, sbdf, pci, identity=0x4E494331):
        self.xen, self.sbdf, self.pci = xen, sbdf, pci
        self.registers = {0x00: identity, 0x08: 1}
        self.faults = []
        self.sent = []
        self.tamper = None
        self.peer_answers = True

    # MmioPort
    def readl(self, address):
        offset = address - BAR
        if offset == 0x0C:
            return int.from_bytes(MAC[:4], "little")
        if offset == 0x10:
            return int.from_bytes(MAC[4:], "little")
        return self.registers.get(offset, 0)

    def writel(self, address, value):
        offset = address - BAR
        if offset == 0x04 and value & 2:
            self.registers = {0x00: self.registers[0], 0x08: 1}
        elif offset == 0x18:
            self.registers[0x18] = self.registers.get(0x18, 0) & ~value
        else:
            self.registers[offset] = value
        if offset == 0x4C and self.registers.get(0x04, 0) & 1:
            self.transmit()

    def access(self, iova, length, data=None):
        """DMA page by page; None if any of it faults."""
        out = b""
        done = 0
        while done < length:
            step = min(length - done, PAGE_SIZE - (iova + done) % PAGE_SIZE)
            paddr = self.xen.translate(self.sbdf, iova + done)
            if paddr is None:
                self.faults.append(iova + done)
                self.registers[0x08] |= 2
                return None
            if data is None:
                out += self.xen.ram.read(paddr, step)
            else:
                self.xen.ram.write(paddr, data[done : done + step])
            done += step
        return out

    def ring(self, which):
        base = self.registers.get(which, 0) | self.registers.get(which + 4, 0) << 32
        return base, (1 << self.registers.get(which + 8, 0)) - 1

    def raise_cause(self, bit):
        status = self.registers.get(0x18, 0)
        rising = bit & ~status & self.registers.get(0x14, 0)
        self.registers[0x18] = status | bit
        doorbell = self.registers.get(0x1C, 0) | self.registers.get(0x20, 0) << 32
        if not rising or not doorbell:
            return
        # x86: the window is taken before translation; elsewhere the write must be translated to the doorbell.
        target = doorbell if doorbell >> 20 == 0xFEE else self.xen_doorbell(doorbell)
        if target == self.pci.doorbell:
            self.pci.handlers[self.registers[0x24] - 0x30]()

    def xen_doorbell(self, iova):
        entry = self.xen.contexts[self.xen.where[self.sbdf]].get(iova >> 12)
        if entry is None:
            self.faults.append(iova)
            return None
        return entry[0] << 12 | iova & 0xFFF

    def transmit(self):
        base, mask = self.ring(0x40)
        head = self.registers.get(0x50, 0)
        parts, good = [], True
        while head != self.registers.get(0x4C, 0):
            raw = self.access(base + 16 * head, 16)
            if raw is None:
                return
            address, length, flags, _, _ = DESCRIPTOR.unpack(raw)
            piece = self.access(address, length)
            good = good and piece is not None
            parts.append(piece or b"")
            done = flags | 0x8000 | (0 if piece is not None else 0x4000)
            self.access(base + 16 * head, 16, DESCRIPTOR.pack(address, length, done, 0, 0))
            head = head + 1 & mask
            self.registers[0x50] = head
            if flags & 1:
                if good:
                    frame = b"".join(parts)
                    self.sent.append(frame)
                    self.answer(frame)
                parts, good = [], True
                self.raise_cause(2)

    def receive(self, frame):
        """A frame from the wire; False if there is no room for it."""
        base, mask = self.ring(0x60)
        head = self.registers.get(0x70, 0)
        tail = self.registers.get(0x6C, 0)
        done = 0
        while done < len(frame):
            if head == tail:
                return False
            address, length, _, _, _ = DESCRIPTOR.unpack(self.access(base + 16 * head, 16))
            piece = frame[done : done + length]
            stored = self.access(address, len(piece), piece)
            done += len(piece)
            flags = 0x8000 | (1 if done == len(frame) else 0) | (0 if stored is not None else 0x4000)
            self.access(base + 16 * head, 16, DESCRIPTOR.pack(address, length, flags, len(piece), 0))
            head = head + 1 & mask
        self.registers[0x70] = head
        self.raise_cause(1)
        return True

    def answer(self, frame):
        """The station at the other end: ARP and ICMP echo."""
        ether = wire.parse_ethernet(frame)
        if not self.peer_answers:
            return
        if ether.ethertype == wire.ETH_P_ARP:
            arp = wire.parse_arp(ether.payload)
            if arp.operation == wire.ARP_REQUEST and arp.target_ip == PEER_IP:
                body = wire.arp(wire.ARP_REPLY, PEER_MAC, PEER_IP, arp.sender_mac, arp.sender_ip)
                self.receive(wire.ethernet(arp.sender_mac, PEER_MAC, wire.ETH_P_ARP, body))
            return
        packet = wire.parse_ipv4(ether.payload)
        echo = wire.parse_echo(packet.payload)
        if echo.kind == wire.ICMP_ECHO:
            payload = self.tamper(echo.payload) if self.tamper else echo.payload
            reply = wire.echo(wire.ICMP_ECHOREPLY, echo.ident, echo.sequence, payload)
            body = wire.ipv4(packet.destination, packet.source, wire.IPPROTO_ICMP, reply)
            self.receive(wire.ethernet(ether.source, PEER_MAC, wire.ETH_P_IP, body))
