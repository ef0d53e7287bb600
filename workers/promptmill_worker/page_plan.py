"""What one step of a continuous batch reads from the cache's pages, and writes to them: the same for all layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import torch

__all__ = ["Decoding", "PageShape", "Plan", "Prefill"]

#: A group's shortest request has at least this share of its longest one's pages: what is copied in vain stays small.
LEAST_FILL = 0.6

#: How many pages less must be copied for requests with the same beginning to be attended to in a way of their own.
WORTH_PAGES = 64


@dataclass(frozen=True)
class PageShape:
    """A page's memory is used as (key heads, tokens, head size).

    Attributes:
        key_heads: Of a layer.
        tokens: Of a page.
        head_size: Numbers of a token's part for one head.
        stride: By how much transformers' numbers of tokens grow from a page of a layer to its next.
    """

    key_heads: int
    tokens: int
    head_size: int
    stride: int


@dataclass(frozen=True)
class Decoding:
    """Requests with one new token each, the same beginning, and about the same number of pages after it.

    Attributes:
        rows: int64 of shape (requests): where their queries stand in the step.
        shared: int64 of shape (key heads · pages): where the heads' parts of the pages are that all of them begin with.
        parts: int64 of shape (requests · key heads · pages of the longest): where the heads' parts of their other pages
            are. A shorter one's first page fills its row up.
        mask: What to add to the scores, of shape (requests · key heads, 1, tokens of the other pages).
    """

    rows: torch.Tensor
    shared: torch.Tensor
    parts: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Prefill:
    """One request with several new tokens.

    Attributes:
        new: Where its queries stand in the step.
        parts: int64 of shape (key heads · pages): where the heads' parts of its pages are.
        total: Its tokens, cached and new.
    """

    new: slice
    parts: torch.Tensor
    total: int


class Plan:
    """What one step reads and writes.

    Args:
        shape: Of the pages.
        write_index: int64 of shape (new tokens): where transformers wants them in the cache.
        read_index: int64 of shape (tokens), or empty where no request has anything in the cache.
        new: New tokens of each request.
        total: Tokens of each request, with the cached ones.
        dtype: Of the mask.
    """

    def __init__(
        self,
        shape: PageShape,
        write_index: torch.Tensor,
        read_index: torch.Tensor,
        new: list[int],
        total: list[int],
        dtype: torch.dtype,
    ) -> None:
        self.shape = shape
        self.write_index = write_index
        self._read_index = read_index
        self._heads = torch.arange(shape.key_heads)[:, None]
        ends = torch.tensor(new).cumsum(0)
        begun = [
            (tokens - 1) // shape.tokens * shape.tokens >= tokens - fresh
            for fresh, tokens in zip(new, total, strict=True)
        ]
        #: Last pages of requests in which nothing was written before this step.
        self.begun = write_index[ends[torch.tensor(begun)] - 1] // shape.stride
        #: Where the new tokens' parts go, one head after the other.
        self.written = self._places(write_index)
        self.prefills: list[Prefill] = []
        self.decodings: list[Decoding] = []
        if self.reads_cache:
            self._group(new, total, dtype)

    @property
    def reads_cache(self) -> bool:
        """Whether any request has something in the cache."""
        return self._read_index.numel() > 0

    def read(self) -> torch.Tensor:
        """Where the parts of all tokens are that the step reads, one head after the other."""
        return self._places(self._read_index)

    def _places(self, index: torch.Tensor) -> torch.Tensor:
        page, place = index // self.shape.stride, index % self.shape.stride
        return ((page * self.shape.key_heads + self._heads) * self.shape.tokens + place).flatten()

    def _parts(self, pages: torch.Tensor) -> torch.Tensor:
        """Where the heads' parts of ``pages`` are, int64 of shape (requests, pages)."""
        return (pages[:, None] * self.shape.key_heads + self._heads).flatten()

    def _group(self, new: list[int], total: list[int], dtype: torch.dtype) -> None:
        decoding: list[_Request] = []
        row = 0
        for fresh, tokens, read in zip(new, total, torch.split(self._read_index[: sum(total)], total), strict=True):
            pages = read[:: self.shape.tokens] // self.shape.stride
            if fresh == 1:
                decoding.append(_Request(pages.tolist(), tokens, row))
            else:
                self.prefills.append(Prefill(slice(row, row + fresh), self._parts(pages[None]), tokens))
            row += fresh
        self.decodings = [
            self._decoding(group, shared, dtype)
            for requests, shared in _by_beginning(decoding)
            for group in _alike(requests, shared)
        ]

    def _decoding(self, group: list[_Request], shared: int, dtype: torch.dtype) -> Decoding:
        own = [request.pages[shared:] for request in group]
        most = len(own[0])
        tokens = torch.tensor([request.tokens for request in group]) - shared * self.shape.tokens
        beyond = (torch.arange(most * self.shape.tokens) >= tokens[:, None]).repeat_interleave(self.shape.key_heads, 0)
        return Decoding(
            rows=torch.tensor([request.row for request in group]),
            shared=self._parts(torch.tensor([group[0].pages[:shared]], dtype=torch.int64)),
            parts=self._parts(torch.tensor([pages + pages[:1] * (most - len(pages)) for pages in own])),
            mask=torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -torch.inf)[:, None],
        )


@dataclass(frozen=True)
class _Request:
    """One that decodes: its pages, its tokens with the new one, and where its query stands in the step."""

    pages: list[int]
    tokens: int
    row: int


def _by_beginning(requests: list[_Request]) -> Iterator[tuple[list[_Request], int]]:
    """Requests that begin with the same pages, and how many pages those are; 0 where that is not worth it."""
    shared = _shared_pages(requests)
    branches: dict[int, list[_Request]] = defaultdict(list)
    for request in requests:
        branches[request.pages[shared]].append(request)
    others = []
    for branch in branches.values():
        if (_shared_pages(branch) - shared) * (len(branch) - 1) >= WORTH_PAGES:
            yield from _by_beginning(branch)
        else:
            others += branch
    if others:
        yield others, shared if shared * (len(others) - 1) >= WORTH_PAGES else 0


def _shared_pages(requests: list[_Request]) -> int:
    """How many pages all of them begin with; the one that each writes to is its own."""
    places = zip(*(request.pages[:-1] for request in requests), strict=False)
    return sum(1 for _ in takewhile(lambda pages: len(set(pages)) == 1, places))


def _alike(requests: list[_Request], shared: int) -> Iterator[list[_Request]]:
    """Groups of requests by how many pages they have after those that they share, the longest first."""
    group: list[_Request] = []
    for request in sorted(requests, key=lambda request: -len(request.pages)):
        if group and len(request.pages) - shared < LEAST_FILL * (len(group[0].pages) - shared):
            yield group
            group = []
        group.append(request)
    if group:
        yield group
