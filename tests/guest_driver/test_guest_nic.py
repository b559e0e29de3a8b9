# SPDX-License-Identifier: GPL-2.0-or-later
"""The NIC driver and the little network stack above it."""

import pytest
from fake_hypervisor import FakePci, FakeRam, FakeXen
from fake_nic import BAR, MAC, PEER_MAC, FakeNic
from hypothesis import given
from hypothesis import strategies as st

from abi import versions
from abi.errno import EBUSY, EINVAL, EIO, ENODEV, ENOMEM
from base.units import parse_sbdf
from guest_driver.boot import boot
from guest_driver.linux.dd import device_driver_attach
from guest_driver.linux.iommu_owner import iommu_group_claim_dma_owner
from guest_driver.net import wire
from guest_driver.net.flood import EchoFlood
from guest_driver.net.skb import build_skb
from guest_driver.net.stack import NetStack, pattern
from guest_driver.nic import nic_probe
from guest_driver.port import PciInfo

SBDF = parse_sbdf("01:00.0")


class Late:
    """MmioPort that is connected after the guest has booted."""

    nic = None

    def readl(self, address):
        return self.nic.readl(address)

    def writel(self, address, value):
        self.nic.writel(address, value)


def machine(version="v7", pv=False, doorbell=0xFEE00000, identity=0x4E494331, window=(0xFEE00000, 0x100000), **options):
    functions = [PciInfo(SBDF, class_code=0x020000, bars=((BAR, 0x1000),))]
    ram = FakeRam(1024, pv)
    xen = FakeXen(versions.get(version), ram, functions, ("default_identity", "cache"))
    pci, port = FakePci(functions, doorbell), Late()
    guest = boot(xen, ram, pci, port, xen.abi, msi_window=window)
    port.nic = FakeNic(xen, SBDF, pci, identity)
    guest.options = options
    return guest, xen, port.nic


def interface(version="v7", pv=False, mtu=1500, **kwargs):
    guest, xen, card = machine(version, pv, **kwargs)
    nic = nic_probe(guest.kernel, guest.devices[SBDF], **guest.options)
    assert not isinstance(nic, int), nic
    assert nic.ndo_open() == 0
    return guest, xen, card, nic, NetStack(nic, "10.0.0.2", mtu)


def assert_clean(guest, nic, stack=None):
    if stack is not None:
        stack.close()
    nic.remove()
    leaks = guest.leaks()
    assert leaks["pages"] == (1 if guest.xen else 0) and not leaks["iovas"] and guest.warnings == 0
    guest.shutdown()
    assert not any(guest.leaks().values())


@pytest.mark.parametrize("use_sg", [False, True])
@pytest.mark.parametrize("pv", [False, True])
@pytest.mark.parametrize("doorbell", [None, 0xFEE00000])
@pytest.mark.parametrize("version", ["v3", "v7"])
def test_pings_of_all_sizes_come_back_byte_by_byte(version, doorbell, pv, use_sg):
    guest, _, card, nic, stack = interface(version, pv, doorbell=doorbell, use_sg=use_sg)
    for seq, size in enumerate((0, 1, 56, 471, 1000, 1472)):
        result = stack.ping("10.0.0.1", size, 7, seq)
        assert result.ok and result.payload_bytes == size, result
    assert card.faults == [] and not nic.dma_error and nic.link
    assert nic.counters.tx_packets == nic.counters.rx_packets == 7
    assert bool(nic.counters.interrupts) == (doorbell is not None)
    assert_clean(guest, nic, stack)


def test_frames_lie_in_pieces_that_are_not_neighbours():
    guest, _, _, _, _ = interface()
    frame = bytes(range(256)) * 6
    skb = build_skb(guest.kernel, frame[:1514], 42)
    pfns = [pfn for pfn, _, _ in skb.frags]
    assert len(pfns) >= 4 and all(abs(a - b) > 1 for a in pfns for b in pfns if a is not b)
    assert skb.data() == frame[:1514] and len(skb) == 1514
    skb.free()


def test_jumbo_frames_use_several_receive_buffers():
    guest, _, _, nic, stack = interface(mtu=9000, rx_buffer=512)
    assert stack.ping("10.0.0.1", 8972).ok
    assert_clean(guest, nic, stack)


def test_rings_wrap_around():
    guest, _, card, nic, stack = interface(ring_log2=4)
    for seq in range(40):
        assert stack.ping("10.0.0.1", 200 + seq * 9, 1, seq).ok
    assert nic.counters.rx_packets == 41 and not card.faults
    assert_clean(guest, nic, stack)


def test_translated_doorbell_is_mapped_for_the_device():
    guest, _, card, nic, stack = interface(doorbell=0x8020040, window=None)
    assert nic.irq[0] != 0x8020040 and nic.irq[0] & 0xFFF == 0x40
    assert stack.ping("10.0.0.1").ok and nic.counters.interrupts and not card.faults
    assert_clean(guest, nic, stack)


def test_doorbell_that_does_not_get_through_shows_as_a_dead_network():
    guest, _, card, nic, stack = interface(doorbell=0x8020040, window=None)
    card.registers[0x1C], card.registers[0x20] = 0x5040, 0
    result = stack.ping("10.0.0.1", polls=20)
    assert result.error == "no answer to ARP" and card.faults
    assert_clean(guest, nic, stack)


def test_doorbell_that_cannot_be_mapped_means_polling():
    guest, xen, _ = machine(doorbell=0x8020040, window=None)
    xen.fail = lambda name, fields: 1 if name == "map_pages" and fields[1] == 0x8020 else 0
    nic = nic_probe(guest.kernel, guest.devices[SBDF])
    assert nic.ndo_open() == 0 and nic.irq is None
    stack = NetStack(nic, "10.0.0.2")
    assert stack.ping("10.0.0.1").ok
    assert_clean(guest, nic, stack)


def test_difference_in_a_reply_is_found_at_its_offset():
    _, _, card, _, stack = interface()
    card.tamper = lambda payload: payload[:77] + bytes([payload[77] ^ 1]) + payload[78:]
    result = stack.ping("10.0.0.1", 500)
    assert not result.ok and result.first_difference == 77
    card.tamper = lambda payload: payload[:-3]
    assert stack.ping("10.0.0.1", 500).first_difference == 497


def test_silent_peer_is_a_timeout():
    _, _, card, _, stack = interface()
    assert stack.ping("10.0.0.1").ok
    card.peer_answers = False
    relaxed = []
    result = stack.ping("10.0.0.1", polls=5, relax=lambda: relaxed.append(1))
    assert result.error == "no reply" and len(relaxed) == 5
    assert stack.ping("10.0.0.9", polls=5).error == "no answer to ARP"


def test_too_long_for_the_mtu():
    _, _, _, _, stack = interface()
    assert stack.ping("10.0.0.1", 1473).error == "EMSGSIZE"


def test_guest_answers_arp_and_pings():
    guest, _, card, nic, stack = interface()
    ours = bytes([10, 0, 0, 2])
    peer = bytes([10, 0, 0, 1])
    question = wire.arp(wire.ARP_REQUEST, PEER_MAC, peer, bytes(6), ours)
    assert card.receive(wire.ethernet(wire.ETH_BROADCAST, PEER_MAC, wire.ETH_P_ARP, question))
    nic.poll()
    answer = wire.parse_arp(wire.parse_ethernet(card.sent[-1]).payload)
    assert (answer.operation, answer.sender_mac, answer.sender_ip) == (wire.ARP_REPLY, MAC, ours)
    request = wire.ipv4(peer, ours, wire.IPPROTO_ICMP, wire.echo(wire.ICMP_ECHO, 3, 4, b"hello there"))
    assert card.receive(wire.ethernet(MAC, PEER_MAC, wire.ETH_P_IP, request))
    nic.poll()
    packet = wire.parse_ipv4(wire.parse_ethernet(card.sent[-1]).payload)
    assert wire.parse_echo(packet.payload) == (wire.ICMP_ECHOREPLY, 3, 4, b"hello there")
    assert_clean(guest, nic, stack)


def test_frames_for_others_and_garbage_are_dropped():
    guest, _, card, nic, stack = interface()
    for frame in (b"short", wire.ethernet(PEER_MAC, PEER_MAC, 0x800, b"x" * 46), wire.ethernet(MAC, MAC, 0x86DD, b"")):
        card.receive(frame)
    card.receive(wire.ethernet(MAC, PEER_MAC, wire.ETH_P_ARP, b"\0" * 28))
    card.receive(wire.ethernet(MAC, PEER_MAC, wire.ETH_P_IP, b"\x45" + b"\0" * 45))
    nic.poll()
    assert nic.counters.rx_packets == 5 and not card.sent and not stack.replies
    assert_clean(guest, nic, stack)


def test_full_ring_is_ebusy_and_the_frame_stays_the_callers():
    guest, _, card, nic, stack = interface(ring_log2=3, doorbell=None)
    card.registers[0x04] = 0  # stopped: nothing completes
    frames = []
    while True:
        skb = build_skb(guest.kernel, b"z" * 600, 42)
        ret = nic.ndo_start_xmit(skb)
        if ret:
            break
        frames.append(skb)
    assert ret == -EBUSY and len(frames) == 2 and skb.frags
    skb.free()
    assert_clean(guest, nic, stack)


def test_unmappable_frame_is_enomem_and_nothing_stays_mapped():
    guest, xen, _, nic, stack = interface()
    domain = nic.dev.iommu_group.default_domain
    before = dict(xen.contexts[domain.ctx_no])
    for budget in range(4):
        skb = build_skb(guest.kernel, b"z" * 1500, 42)
        xen.page_budget = budget
        assert nic.ndo_start_xmit(skb) == -ENOMEM
        assert xen.contexts[domain.ctx_no] == before
        skb.free()
    xen.page_budget = None
    assert nic.counters.tx_dropped == 4
    assert_clean(guest, nic, stack)


def test_refused_transmit_dma_is_counted_and_cleaned_up():
    guest, xen, card, nic, stack = interface(doorbell=None)
    skb = build_skb(guest.kernel, b"z" * 900, 42)
    card.registers[0x04] = 0
    assert nic.ndo_start_xmit(skb) == 0
    table = xen.contexts[nic.dev.iommu_group.default_domain.ctx_no]
    victim = next(dfn for dfn, (gfn, _) in table.items() if gfn == skb.frags[1][0])
    entry = table.pop(victim)
    card.registers[0x04] = 1
    card.transmit()
    table[victim] = entry
    nic.poll()
    assert nic.counters.tx_errors == 1 and nic.dma_error and not card.sent
    assert_clean(guest, nic, stack)


def test_receive_survives_a_time_without_memory():
    guest, _, card, nic, stack = interface(ring_log2=3)
    guest.kernel.pages.fault = lambda order: True
    for _ in range(7):
        assert card.receive(wire.ethernet(MAC, PEER_MAC, 0x9000, b"x" * 50))
        nic.poll()
    assert not card.receive(wire.ethernet(MAC, PEER_MAC, 0x9000, b"x" * 50))
    guest.kernel.pages.fault = None
    nic.napi_poll()
    assert stack.ping("10.0.0.1").ok
    assert_clean(guest, nic, stack)


@pytest.mark.parametrize("failing", range(14))
def test_open_undoes_everything_at_any_failing_allocation(failing):
    guest, _, _ = machine(ring_log2=3)
    count = iter(range(1000))
    nic = nic_probe(guest.kernel, guest.devices[SBDF], ring_log2=9)
    guest.kernel.pages.fault = lambda order: next(count) >= failing
    ret = nic.ndo_open()
    guest.kernel.pages.fault = None
    assert ret in (0, -ENOMEM)
    assert_clean(guest, nic)


@pytest.mark.parametrize("budget", range(12))
def test_open_undoes_everything_at_any_failing_mapping(budget):
    guest, xen, _ = machine()
    nic = nic_probe(guest.kernel, guest.devices[SBDF], ring_log2=9)
    xen.page_budget = budget
    assert nic.ndo_open() in (0, -ENOMEM)
    xen.page_budget = None
    assert_clean(guest, nic)


def test_stop_takes_back_what_the_device_still_has():
    guest, _, card, nic, stack = interface(doorbell=None)
    card.registers[0x04] = 0
    assert nic.ndo_start_xmit(build_skb(guest.kernel, b"z" * 900, 42)) == 0
    nic.ndo_stop()
    nic.ndo_stop()
    assert nic.ndo_open() == 0 and nic.ndo_open() == -EBUSY
    assert stack.ping("10.0.0.1").ok
    assert_clean(guest, nic, stack)


def test_transmit_while_down_is_eio():
    guest, _, _, nic, _ = interface()
    nic.ndo_stop()
    skb = build_skb(guest.kernel, b"z" * 60, 42)
    assert nic.ndo_start_xmit(skb) == -EIO and nic.napi_poll() == 0
    nic._irq_handler()
    assert not guest.kernel.softirqs


def test_probe_declines_what_is_not_such_a_card():
    guest, _, _ = machine(identity=0x12345678)
    dev = guest.devices[SBDF]
    assert nic_probe(guest.kernel, dev) == -ENODEV and dev.driver is None
    assert nic_probe(guest.kernel, dev, ring_log2=13) == -EINVAL
    assert nic_probe(guest.kernel, dev, rx_buffer=8192) == -EINVAL
    guest, _, _ = machine()
    dev = guest.devices[SBDF]
    assert device_driver_attach(dev, "other") == 0
    assert nic_probe(guest.kernel, dev) == -EBUSY
    guest, _, _ = machine()
    dev = guest.devices[SBDF]
    assert iommu_group_claim_dma_owner(dev.iommu_group, object()) == 0
    assert nic_probe(guest.kernel, dev) == -EBUSY


# -- frames


@given(st.binary(max_size=80))
def test_parsers_are_total(data):
    for parse in (wire.parse_ethernet, wire.parse_arp, wire.parse_ipv4, wire.parse_echo):
        parse(data)


@given(st.binary(max_size=300), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_echo_in_ipv4_survives_the_trip_and_any_flipped_bit_is_noticed(payload, ident, seq):
    message = wire.echo(wire.ICMP_ECHO, ident, seq, payload)
    packet = wire.ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", wire.IPPROTO_ICMP, message)
    got = wire.parse_ipv4(packet + b"padding")
    assert wire.parse_echo(got.payload) == (wire.ICMP_ECHO, ident, seq, payload)
    bit = (ident * 7 + seq) % (8 * len(message))
    broken = bytearray(message)
    broken[bit // 8] ^= 1 << bit % 8
    assert wire.parse_echo(bytes(broken)) is None


@pytest.mark.parametrize("recycle", [False, True])
@pytest.mark.parametrize("doorbell", [None, 0xFEE00000])
def test_a_flood_comes_back_byte_by_byte_and_full_rings_are_no_error(doorbell, recycle):
    guest, _, card, nic, _ = interface(doorbell=doorbell, recycle=recycle, ring_log2=5)
    stack = NetStack(nic, "10.0.0.2", head_bytes=2000)
    assert stack.resolve(bytes([10, 0, 0, 1]))[1] == ""
    flood = EchoFlood(stack, "10.0.0.1", 1472, 9)
    doorbells = len(card.sent)
    for _ in range(20):
        assert flood.burst(50) == 0  # more than the ring has room for
        nic.poll()
        flood.collect()
    assert flood.sent == flood.returned == 20 * 31 and not flood.outstanding and not flood.errors
    assert flood.compared == flood.returned * 1472 and len(card.sent) == doorbells + flood.sent
    guest.kernel.drivers.remove(stack)
    assert nic.counters.rx_packets == nic.counters.tx_packets and nic.ndo_open() == -EBUSY


def test_a_reply_with_other_bytes_is_an_error():
    _, _, card, nic, _ = interface()
    stack = NetStack(nic, "10.0.0.2", head_bytes=2000)
    stack.resolve(bytes([10, 0, 0, 1]))
    flood = EchoFlood(stack, "10.0.0.1", 100, 9)
    card.tamper = lambda payload: payload if payload[0] == pattern(100, 9, 0)[0] else payload[::-1]
    assert flood.burst(2) == 0
    nic.poll()
    assert flood.collect() == 0 and flood.returned == 1 and "request 1" in flood.errors[0]


@given(st.binary(max_size=64))
def test_checksum_is_the_folded_sum_of_words(data):
    padded = data + bytes(len(data) & 1)
    total = sum(int.from_bytes(padded[at : at + 2]) for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert wire.checksum(data) == ~total & 0xFFFF


def test_checksum_of_the_rfc_1071_example():
    assert wire.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@pytest.mark.parametrize("recycle", [False, True])
def test_recycled_receive_pages_stay_mapped_until_the_interface_goes_down(recycle):
    guest, _, _, nic, stack = interface(recycle=recycle)
    stack.ping("10.0.0.1", 100)
    posted = {pfn for pfn, _ in nic._rx_slots.values()}
    for sequence in range(1, 70):
        assert stack.ping("10.0.0.1", 1000, 7, sequence).ok
    assert ({pfn for pfn, _ in nic._rx_slots.values()} == posted) == recycle
    assert_clean(guest, nic, stack)
