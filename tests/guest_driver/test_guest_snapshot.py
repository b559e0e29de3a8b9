# SPDX-License-Identifier: GPL-2.0-or-later
"""Going back to a snapshot of the whole guest kernel."""

import copy

from test_guest_nic import SBDF, interface

from guest_driver.linux.dma_iommu import DMA_TO_DEVICE
from guest_driver.linux.iommu_attach import iommu_attach_group
from guest_driver.linux.iommu_core import iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.iommu_default_domain import iommu_group_store_type
from guest_driver.linux.iommu_map import iommu_iova_to_phys, iommu_map
from guest_driver.linux.iommu_probe import pci_stop_and_remove_bus_device


def world(guest, xen, card):
    """Everything outside the guest kernel."""
    return (bytes(xen.ram.memory), copy.deepcopy(xen.contexts), dict(xen.where), dict(card.registers))


def set_world(guest, xen, card, state):
    xen.ram.memory[:] = state[0]
    xen.contexts, xen.where, card.registers = copy.deepcopy(state[1]), dict(state[2]), dict(state[3])


def test_restored_kernel_repeats_its_history_to_the_byte():
    guest, xen, card, _, stack = interface(ring_log2=4)
    assert stack.ping("10.0.0.1", 300).ok
    kernel_state, outside = guest.save(), world(guest, xen, card)
    histories = []
    for _ in range(3):
        first_call = len(xen.calls)
        results = [stack.ping("10.0.0.1", size, 1, size) for size in (10, 700, 1400)]
        histories.append((xen.calls[first_call:], results, world(guest, xen, card), list(guest.log)))
        guest.restore(kernel_state)
        set_world(guest, xen, card, outside)
    assert histories[0] == histories[1] == histories[2]
    assert all(result.ok for result in histories[0][1])


def test_saving_does_not_change_and_restoring_gives_the_same_snapshot():
    guest, *_ = interface()
    state = guest.save()
    assert guest.save() == state
    guest.restore(state)
    assert guest.save() == state


def test_objects_made_since_are_forgotten_and_objects_freed_live_again():
    guest, xen, card, nic, stack = interface()
    dev = guest.devices[SBDF]
    group = dev.iommu_group
    kept = iommu_paging_domain_alloc(dev)
    assert iommu_map(kept, 0x5000, 0x9000, 0x3000, 3) == 0
    state, outside = guest.save(), world(guest, xen, card)

    iommu_domain_free(kept)
    made = iommu_paging_domain_alloc(dev)
    address = guest.dma.map_single(dev, 0x7000, 64, DMA_TO_DEVICE)
    stack.close()
    nic.remove()
    assert iommu_attach_group(made, group) == 0
    guest.kernel.printk.warn_on(True, "something")
    guest.restore(state)
    set_world(guest, xen, card, outside)

    assert made not in guest.iommu.domains and kept in guest.iommu.domains
    assert iommu_iova_to_phys(kept, 0x6001) == 0xA001
    assert group.domain is group.default_domain and dev.driver == "nic1" and guest.warnings == 0
    assert guest.dma.map_single(dev, 0x7000, 64, DMA_TO_DEVICE) == address
    guest.dma.unmap_single(dev, address, 64, DMA_TO_DEVICE)
    assert stack.ping("10.0.0.1").ok


def test_devices_and_default_domains_come_back():
    guest, xen, card, nic, stack = interface()
    dev = guest.devices[SBDF]
    group, default = dev.iommu_group, dev.iommu_group.default_domain
    state, outside = guest.save(), world(guest, xen, card)
    stack.close()
    nic.remove()
    assert iommu_group_store_type(group, "identity") == 0
    assert pci_stop_and_remove_bus_device(dev) == 0
    assert not guest.devices and not guest.iommu.groups
    guest.restore(state)
    set_world(guest, xen, card, outside)
    assert guest.devices[SBDF] is dev and dev.iommu_group is group and group.default_domain is default
    assert stack.ping("10.0.0.1", 900).ok


def test_shut_down_kernel_comes_back():
    guest, xen, card, nic, stack = interface()
    state, outside = guest.save(), world(guest, xen, card)
    stack.close()
    nic.remove()
    guest.shutdown()
    assert guest.xen is None
    guest.restore(state)
    set_world(guest, xen, card, outside)
    assert guest.xen is not None and stack.ping("10.0.0.1").ok


def test_snapshot_state_holds_no_references_that_later_work_can_change():
    guest, _, _, _, stack = interface()
    state = guest.save()
    before = repr(state[1][1]), repr(state[1][2])
    for seq in range(5):
        stack.ping("10.0.0.1", 1000, 1, seq)
    assert (repr(state[1][1]), repr(state[1][2])) == before
