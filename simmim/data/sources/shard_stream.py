"""Tar shards behind URLs or commands, read from front to end by the webdataset library."""

import json
import logging
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import get_worker_info

from simmim.data.sources.shard_samples import (
    File,
    choose_images,
    describe_left_out,
    group_files,
    is_needed,
    split_name,
)
from simmim.data.sources.shard_urls import DESCRIPTION, require_webdataset
from simmim.data.sources.streams import Encoded, FirstImages
from simmim.data.sources.tar_index import Member, parse_label
from simmim.data.unreadable.policy import OnError
from simmim.utils.console import say
from simmim.utils.errors import UserError
from simmim.utils.rng import derive_seed

log = logging.getLogger(__name__)

# Bytes, because a stream has no length with which to compare a header's size.
_LARGEST_FILE = 1 << 30


class ShardStream:
    """Shards in a random order, their images shuffled in a buffer, by (seed, epoch).

    Args:
        urls: what the library can open: `https://…`, `s3`-like schemes, `file://…`, `pipe:COMMAND`.
        length: samples that count as an epoch.
        buffer: samples that the shuffle buffer holds, encoded; 1 keeps the order in a shard.
        on_error: whether a damaged shard is skipped with a warning (`skip`) or stops the run.
        keys: the patterns of `data.image_key`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        length: int,
        *,
        buffer: int,
        seed: int,
        classes: tuple[str, ...] = (),
        channels: int = 3,
        on_error: OnError = "raise",
        keys: Sequence[str] = (),
    ) -> None:
        self.keys = tuple(keys)
        self._told: set[str] = set()
        self.urls = list(urls)
        self.buffer = buffer
        self.seed = seed
        self.classes = classes
        self.channels = channels
        self.on_error = on_error
        self._length = length

    def present_classes(self) -> tuple[str, ...]:
        """All classes, because a stream is not read to find out."""
        return self.classes

    def __len__(self) -> int:
        """Samples that count as an epoch."""
        return self._length

    def read_part(self, epoch: int, part: int, parts: int) -> Iterator[Encoded]:
        """The images of every `parts`-th shard of the epoch's order."""
        wds = require_webdataset()
        urls = list(self.urls)
        random.Random(derive_seed(self.seed, "shards", epoch)).shuffle(urls)
        # With fewer shards than readers, each reads all and keeps its share.
        is_split = len(urls) >= parts
        handler = partial(self._report, set())
        rng = random.Random(derive_seed(self.seed, "buffer", epoch, part if is_split else 0))
        pipeline = wds.DataPipeline(
            wds.SimpleShardList(urls[part::parts] if is_split else urls),
            partial(wds.tariterators.url_opener, handler=handler),
            partial(self._read_shards, handler=handler),
            wds.shuffle(self.buffer, initial=self.buffer, rng=rng),
        )
        images = iter(pipeline)
        yield from images if is_split else islice(images, part, None, parts)

    def _read_shards(
        self, shards: Iterable[dict[str, Any]], handler: Callable[[Exception], bool]
    ) -> Iterator[Encoded]:
        """The images of opened shards, one after another."""
        for shard in shards:
            try:
                for group in group_files(_read_files(shard["stream"])):
                    yield from self._encode(group, shard["url"])
            except Exception as error:  # of as many types as there are ways to open a shard
                error.args = (*error.args, shard["url"])
                if not handler(error):
                    return

    def _encode(self, group: Sequence[File[bytes]], url: str) -> Iterator[Encoded]:
        chosen = choose_images(group, self.keys)
        self._tell(group, {image.image.path for image in chosen})
        for one in chosen:
            image, label = one.image, -1
            if self.classes:
                text = image.name.folder
                if one.label is not None:
                    text = parse_label(one.label.content).decode("utf-8", "replace")
                label = _place(text, self.classes) if text else -1
            yield Encoded(image.content, f"{url}/{image.path}", label)

    def _tell(self, group: Sequence[File[bytes]], taken: set[str]) -> None:
        """Logs which images of samples are left out, once each, but not in loader workers."""
        left_out = {
            file.name.suffixes for file in group if file.name.is_image and file.path not in taken
        }
        if left_out - self._told:
            self._told |= left_out
            if get_worker_info() is None:
                say(describe_left_out(left_out))

    def _report(self, named: set[str], error: Exception) -> bool:
        """Whether to continue after a shard that cannot be read, or only in part."""
        if isinstance(error, UserError):
            raise error
        # The library adds the shard's URL to the error's arguments.
        url = next((text for text in reversed(error.args) if text in self.urls), "a shard")
        reason = str(error.args[0]).split(" @ ", 1)[0] if error.args else type(error).__name__
        what = f"{url} is damaged or cannot be read ({reason})"
        if self.on_error == "raise":
            raise UserError(f"{what}; restore it, or use data.on_error=skip") from error
        named.add(url)
        log.warning(f"skipped: the rest of {what}; {len(named)} shards so far in this epoch's part")
        return True


def open_streams(
    urls: Sequence[str],
    val_urls: Sequence[str],
    *,
    val_ratio: float,
    val_size: int,
    buffer: int,
    channels: int,
    seed: int,
    on_error: OnError,
    samples_per_epoch: int | None,
    keys: Sequence[str] = (),
) -> tuple[ShardStream, FirstImages]:
    """The training stream, and held-out images: the first of `val_urls`, or of the last `urls`.

    Raises:
        UserError: the length of an epoch is unknown, or there is only one shard.
    """
    everything = [*urls, *val_urls]
    about = describe_url(everything[0])
    classes = tuple(about.get("classes", ()))
    train_urls = list(urls)
    if not val_urls:
        count = min(max(1, round(val_ratio * len(train_urls))), len(train_urls) - 1)
        if count < 1:
            raise UserError(
                f"{train_urls[0]} is one shard, none is left to validate on; set data.val_root"
            )
        train_urls, val_urls = train_urls[:-count], train_urls[-count:]
        say(f"the last {count} of {len(urls)} shards are held out (data.val_ratio)")
    if samples_per_epoch is None and train_urls:
        counts = about.get("shards", {})
        unknown = [url for url in train_urls if url.rsplit("/", 1)[-1] not in counts]
        if unknown:
            raise UserError(
                f"how many images {unknown[0]} holds is not known; set data.samples_per_epoch=N, "
                "or make the shards with scripts/make_shards.py"
            )
        samples_per_epoch = sum(counts[url.rsplit("/", 1)[-1]] for url in train_urls)
    if samples_per_epoch is not None and samples_per_epoch < 1 and train_urls:
        raise UserError(f"data.samples_per_epoch {samples_per_epoch} is not positive; use 1000000")
    options: dict[str, Any] = {
        "seed": seed,
        "classes": classes,
        "channels": channels,
        "on_error": on_error,
        "keys": keys,
    }
    train = ShardStream(train_urls, samples_per_epoch or 0, buffer=buffer, **options)
    held_out = ShardStream(val_urls, 0, buffer=1, **options)
    val = FirstImages(held_out.read_part(0, 0, 1), val_size, classes, channels)
    if not len(val):
        raise UserError(f"{val_urls[0]} and {len(val_urls) - 1} other shards hold no image")
    say(f"{len(val)} held-out images are kept in memory (at most data.val_size)")
    return train, val


def describe_url(url: str) -> dict[str, Any]:
    """The dataset.json of scripts/make_shards.py beside a shard; empty if it cannot be read."""
    if url.startswith("pipe:"):
        return {}
    try:
        with require_webdataset().gopen(f"{url.rsplit('/', 1)[0]}/{DESCRIPTION}") as file:
            description = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _read_files(stream: Any) -> Iterator[File[bytes]]:
    """The images and labels of a tar file, pipe or response.

    Nothing else is read: no pickle reaches a decoder, and the size of a member is limited.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=Member) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with the shard
            if not (member.isreg() and is_needed(member.name)):
                continue
            if member.size > _LARGEST_FILE:
                raise tarfile.ReadError(f"a file of {member.size} bytes")
            file = tar.extractfile(member)
            assert file is not None
            yield File(member.name, split_name(member.name), file.read())


def _place(text: str, classes: tuple[str, ...]) -> int:
    """A label's index in `classes`; UserError if it is not one of them."""
    if text in classes:
        return classes.index(text)
    if text.isascii() and text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise UserError(f"label {text!r} of a streamed image is none of {len(classes)} classes")
