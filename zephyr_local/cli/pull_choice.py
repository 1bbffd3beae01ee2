"""Which file of a repository is pulled where the name leaves it open, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.errors import NotEnoughMemoryError, OutputError, ZephyrError
from zephyr_local.memory.plan import Machine, readable

if TYPE_CHECKING:
    from zephyr_local.memory.estimate import MemoryEstimate
    from zephyr_local.memory.shape import ModelShape
    from zephyr_local.model_store.catalogue import CatalogueEntry
    from zephyr_local.model_store.pull import Offer
    from zephyr_local.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """What may be written to the store."""

    store: Path
    free_bytes: int
    """Of its disk, without what a download leaves free."""
    held_bytes: int
    """By the store now."""
    max_bytes: int | None
    """What it may hold; None: as much as the disk does."""

    def shortfall(self, missing_bytes: int) -> str | None:
        """What is missing for so many bytes more; None where they have room."""
        needed = f"{readable(missing_bytes)} of disk"
        if missing_bytes > self.free_bytes:
            return f"{needed}, and {readable(max(0, self.free_bytes))} may be written to that of {self.store}"
        if self.max_bytes is not None and (over := self.held_bytes + missing_bytes - self.max_bytes) > 0:
            return (
                f"{needed}, and {self.store} holds {readable(self.held_bytes)} of the {readable(self.max_bytes)} that "
                f"it may: {readable(over)} too much"
            )
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be chosen from, and what it is to fit."""

    name: str
    """As the user gave it."""
    entry: CatalogueEntry | None
    settings: EngineSettings
    missing: Mapping[Offer, int]
    """By offer, the bytes that are still to come: 0 where all of it is here."""
    room: DiskRoom

    def best(self, found: Sequence[Offer]) -> tuple[Offer, str]:
        """The largest quantized offer that fits memory and disk, and why in a line.

        Raises NotEnoughMemoryError or OutputError with what is missing, and the next smaller choice.
        """
        from zephyr_local.cli.type_fits import UNQUANTIZED
        from zephyr_local.engine.machine import machine_known

        machine = machine_known()
        quantized = [offer for offer in found if offer.file_type not in UNQUANTIZED] or list(found)
        larger: _Need | None = None
        for offer in sorted(quantized, key=lambda offer: -offer.size_bytes):
            need = self._need(offer, machine)
            if need.shortfall is None:
                return offer, _why(need, machine, larger)
            larger = need
        assert larger is not None
        raise self._refusal(larger, machine)

    def require_disk(self, offer: Offer, others: Sequence[Offer]) -> None:
        """Raise OutputError where an offer has no room, with the largest of the others that has."""
        shortfall = self.room.shortfall(self.missing[offer])
        if shortfall is None:
            return
        smaller = [
            other
            for other in others
            if other.size_bytes < offer.size_bytes and self.room.shortfall(self.missing[other]) is None
        ]
        best = max(smaller, key=lambda other: other.size_bytes, default=None)
        take = f"; or take {best.label}, {readable(best.size_bytes)}" if best is not None else ""
        raise OutputError(f"{offer.stem} needs {shortfall}", self._free_some(take))

    def memory_notice(self, offer: Offer) -> str | None:
        """What an offer that was asked for as it is lacks of memory; None where that is nothing, or nobody knows."""
        from zephyr_local.engine.machine import machine_known

        if not self.settings.check_memory or self._shape(offer) is None:
            return None
        machine = machine_known()
        need = self._memory_need(offer, machine)
        if need.shortfall is None:
            return None
        return f"{offer.stem} needs {need.shortfall}; it is fetched all the same, as {self.name} names it"

    def _need(self, offer: Offer, machine: Machine) -> _Need:
        need = self._memory_need(offer, machine)
        if need.shortfall is None and (of_disk := self.room.shortfall(self.missing[offer])) is not None:
            return replace(need, shortfall=of_disk, is_disk=True)
        return need

    def _memory_need(self, offer: Offer, machine: Machine) -> _Need:
        from zephyr_local.memory.plan import fitted, limit_told

        model = self._shape(offer)
        if model is None:  # not known before it is here; it needs as much as it has
            gpus = sum(gpu.free_bytes for gpu in machine.gpus if not gpu.is_unified)
            size, available = readable(offer.size_bytes), readable(machine.available_bytes + gpus)
            too_much = self.settings.check_memory and offer.size_bytes > machine.available_bytes + gpus
            problem = f"at least {size} of memory, and {available} are available{limit_told(machine)}"
            return _Need(offer, None, problem if too_much else None)
        estimate, missing = fitted(model, self._usual(model), machine)
        if missing is None or not self.settings.check_memory:
            return _Need(offer, estimate, None)
        at = f" with a context of {estimate.n_ctx} tokens{limit_told(machine)}"
        return _Need(offer, estimate, f"{missing}{at}")

    def _usual(self, model: ModelShape) -> EngineSettings:
        """With the usual context where none is asked for: nobody downloads for one that was made smaller to fit."""
        from zephyr_local.memory.estimate import padded_n_ctx

        return replace(self.settings, n_ctx=padded_n_ctx(model, self.settings))

    def _shape(self, offer: Offer) -> ModelShape | None:
        """Where the catalogue knows the model's shape, and we know the type."""
        from zephyr_local.cli.type_fits import shape_in_type
        from zephyr_local.quantize.types import FileType

        file_type = FileType.__members__.get(offer.file_type or "")
        if self.entry is None or self.entry.shape is None or file_type is None:
            return None
        return shape_in_type(self.entry.shape, file_type)

    def _refusal(self, smallest: _Need, machine: Machine) -> ZephyrError:
        from zephyr_local.memory.plan import changes_told, nearest_that_fits

        label = smallest.offer.label
        problem = f"nothing of {self.name} fits: the smallest, {label}, needs {smallest.shortfall}"
        if smallest.is_disk:
            return OutputError(problem, self._free_some(""))
        model = self._shape(smallest.offer)
        usual = None if model is None else self._usual(model)
        near = None if model is None or usual is None else nearest_that_fits(model, usual, machine)
        if near is None or usual is None:
            return NotEnoughMemoryError(problem, "Free memory, or take a smaller model")
        return NotEnoughMemoryError(problem, f"{label} fits with {changes_told(near, usual)}; or free memory")

    def _free_some(self, take: str) -> str:
        raise_it = ", raise --max-disk" if self.room.max_bytes is not None else ""
        return (
            f"Free some (zephyr-local models list, rm, prune){raise_it}, or put the store elsewhere "
            f"(ZEPHYR_LOCAL_STORE_FOLDER){take}"
        )


@dataclass(frozen=True, slots=True)
class _Need:
    """What an offer needs of memory, and what is missing, if anything is."""

    offer: Offer
    estimate: MemoryEstimate | None
    """None where its shape is not known."""
    shortfall: str | None
    is_disk: bool = False
    """Whether that is of the disk."""


def _why(need: _Need, machine: Machine, larger: _Need | None) -> str:
    estimate = need.estimate
    if estimate is None:
        takes = f"it takes at least {readable(need.offer.size_bytes)}"
        gpu_bytes = 0
    else:
        takes = f"with a context of {estimate.n_ctx} tokens it takes {readable(estimate.needed_bytes)}"
        gpu_bytes = sum(device.needed_bytes for device in estimate.devices if device.n_layers)
    on_gpu = f", and {readable(gpu_bytes)} of the GPU's" if gpu_bytes else ""
    which = f"{need.offer.label}, {readable(need.offer.size_bytes)}"
    next_larger = f"; {larger.offer.label} needs {larger.shortfall}" if larger is not None else ""
    available = readable(machine.available_bytes)
    return f"{which}: {takes} of the {available} of memory available{on_gpu}{next_larger}"


def disk_room(store: Path, max_bytes: int | None) -> DiskRoom:
    """What may be written to the store now."""
    from zephyr_local.hardware import disk_of
    from zephyr_local.model_store.partials import DISK_MARGIN_BYTES
    from zephyr_local.model_store.pull import bytes_held

    held_bytes = 0 if max_bytes is None else bytes_held(store)
    return DiskRoom(store, disk_of(store).free_bytes - DISK_MARGIN_BYTES, held_bytes, max_bytes)
