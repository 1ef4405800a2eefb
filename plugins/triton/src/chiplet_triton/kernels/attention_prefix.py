"""Prefixes that decoding requests share: who shares what, and attention over it.

A prefix is shared where page tables begin alike. Only pages count that are full of tokens before
the new one, so that nobody writes to a shared page.
"""

import triton
import triton.language as tl

from chiplet_triton.kernels.attention_decode import add_codes, add_keys
from chiplet_triton.kernels.overlap import let_next_start, wait_for_inputs


@triton.jit
def _full_pages(kv_lengths_ptr, requests, is_request, PAGE_SIZE: tl.constexpr):
    lengths = tl.load(kv_lengths_ptr + requests, mask=is_request, other=0)
    return tl.maximum(lengths - 1, 0) // PAGE_SIZE


@triton.jit(do_not_specialize=["num_requests", "table_stride"])
def order_kernel(
    page_table_ptr,
    kv_lengths_ptr,
    order_ptr,
    common_ptr,
    shared_keys_ptr,
    num_requests,
    table_stride,
    PAGE_SIZE: tl.constexpr,
    BLOCK_REQUESTS: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
):
    """Requests in the lexicographic order of their full pages, and what neighbours have in common.

    A request compares its pages with those of all others for as long as some are alike. It has most
    in common with its neighbours, so that the longest prefix that it shares with any later one is
    the one that it shares with the next.

    Grid: requests.
    Mutates: order `[num_requests]`, requests in order; common, pages shared by the one at a place
    and the next; shared_keys, 0 for each request.
    """
    mine = tl.program_id(0)
    tl.store(shared_keys_ptr + mine, 0)
    num_mine = _full_pages(kv_lengths_ptr, mine, True, PAGE_SIZE)
    place = 0
    longest = 0
    for first in range(0, num_requests, BLOCK_REQUESTS):
        others = first + tl.arange(0, BLOCK_REQUESTS)
        is_other = others < num_requests
        num_theirs = _full_pages(kv_lengths_ptr, others, is_other, PAGE_SIZE)
        num_both = tl.minimum(num_mine, num_theirs)
        num_alike = tl.zeros([BLOCK_REQUESTS], tl.int32)
        order = tl.zeros([BLOCK_REQUESTS], tl.int32)
        is_alike = is_other
        begin = 0
        while tl.max(is_alike.to(tl.int32), axis=0) > 0:
            at = begin + tl.arange(0, BLOCK_PAGES)
            my_pages = tl.load(
                page_table_ptr + mine.to(tl.int64) * table_stride + at, mask=at < num_mine, other=-1
            )
            their_pages = tl.load(
                page_table_ptr + others[:, None].to(tl.int64) * table_stride + at[None, :],
                mask=is_alike[:, None] & (at[None, :] < num_theirs[:, None]),
                other=-1,
            )
            beyond = begin + BLOCK_PAGES
            is_different = (their_pages != my_pages[None, :]) | (at[None, :] >= num_both[:, None])
            found = tl.min(tl.where(is_different, at[None, :], beyond), axis=1)
            differences = tl.where(
                at[None, :] == found[:, None], their_pages - my_pages[None, :], 0
            )
            num_alike = tl.where(is_alike, found, num_alike)
            order = tl.where(is_alike, tl.sum(differences, axis=1), order)
            is_alike = is_alike & (found == beyond)
            begin = beyond
        is_before = is_other & ((order < 0) | ((order == 0) & (others < mine)))
        is_after = is_other & (others != mine) & (is_before == 0)
        place += tl.sum(is_before.to(tl.int32), axis=0)
        longest = tl.maximum(longest, tl.max(tl.where(is_after, num_alike, 0), axis=0))
    tl.store(order_ptr + place, mine)
    tl.store(common_ptr + place, longest)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def _is_joined(common_ptr, places, num_requests, FEWEST_PAGES: tl.constexpr):
    """Whether who stands at a place and the next are of one run.

    They share enough, and no less than half of what either shares with its other neighbour.
    """
    last = num_requests - 1
    here = tl.load(common_ptr + places, mask=(places >= 0) & (places < last), other=0)
    before = tl.load(common_ptr + places - 1, mask=(places >= 1) & (places <= last), other=0)
    behind = tl.load(common_ptr + places + 1, mask=(places >= -1) & (places + 1 < last), other=0)
    return (here >= FEWEST_PAGES) & (2 * here >= tl.maximum(before, behind))


@triton.jit(do_not_specialize=["num_requests", "wanted_programs"])
def group_kernel(
    order_ptr,
    common_ptr,
    kv_lengths_ptr,
    groups_ptr,
    counts_ptr,
    shared_keys_ptr,
    num_requests,
    wanted_programs,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    MEMBERS: tl.constexpr,
    FEWEST_MEMBERS: tl.constexpr,
    FEWEST_PAGES: tl.constexpr,
    LEAST_SAVED: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    KEYS_OF_PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cuts the order of requests into groups that share a prefix.

    A run of more than MEMBERS is cut into as few groups as there must be, of nearly equal size.
    There are none if all of them together save less than LEAST_SAVED percent of all full pages.

    Grid: one program.
    Mutates: groups `[num_groups, 3]`: place of the first, number of requests, pages shared by all;
    counts: groups, and parts into which the keys of each are cut; shared_keys of members.
    """
    places = tl.arange(0, BLOCK)
    is_place = places < num_requests
    has_next = _is_joined(common_ptr, places, num_requests, FEWEST_PAGES)
    has_previous = _is_joined(common_ptr, places - 1, num_requests, FEWEST_PAGES)
    first = tl.associative_scan(tl.where(has_previous, 0, places), 0, _larger)
    last = tl.associative_scan(tl.where(has_next, BLOCK, places), 0, _smaller, reverse=True)
    size = last - first + 1
    num_cuts = tl.cdiv(size, MEMBERS)
    offset = places - first
    cut = offset * num_cuts // size
    begin = tl.cdiv(cut * size, num_cuts)
    count = tl.cdiv((cut + 1) * size, num_cuts) - begin
    is_group = is_place & (offset == begin) & (count >= FEWEST_MEMBERS)
    pages = tl.full([BLOCK], 1 << 30, tl.int32)
    for member in range(MEMBERS - 1):
        is_pair = is_group & (member + 1 < count)
        common = tl.load(common_ptr + places + member, mask=is_pair, other=1 << 30)
        pages = tl.minimum(pages, common)
    saved = tl.sum(tl.where(is_group, (count - 1) * pages, 0), axis=0).to(tl.int64)
    most = tl.sum(_full_pages(kv_lengths_ptr, places, is_place, PAGE_SIZE), axis=0).to(tl.int64)
    is_group = is_group & (tl.zeros([BLOCK], tl.int64) + saved * 100 >= most * LEAST_SAVED)
    for member in range(MEMBERS):
        is_member = is_group & (member < count)
        request = tl.load(order_ptr + places + member, mask=is_member, other=0)
        tl.store(shared_keys_ptr + request, pages * PAGE_SIZE, mask=is_member)
    num_groups = tl.sum(is_group.to(tl.int32), axis=0)
    at = 3 * (tl.cumsum(is_group.to(tl.int32), axis=0) - 1)
    tl.store(groups_ptr + at, places, mask=is_group)
    tl.store(groups_ptr + at + 1, count, mask=is_group)
    tl.store(groups_ptr + at + 2, pages, mask=is_group)
    most_keys = tl.max(tl.where(is_group, pages, 0), axis=0) * PAGE_SIZE
    num_parts = wanted_programs // tl.maximum(num_groups * NUM_KV_HEADS, 1)
    num_parts = tl.minimum(num_parts, tl.cdiv(most_keys, KEYS_OF_PART))
    tl.store(counts_ptr, num_groups)
    tl.store(counts_ptr + 1, tl.maximum(tl.minimum(num_parts, MOST_PARTS), 1))


@triton.jit(do_not_specialize=["table_stride"])
def prefix_kernel(
    q_ptr,
    kv_ptr,
    page_table_ptr,
    order_ptr,
    groups_ptr,
    counts_ptr,
    prefix_ptr,
    prefix_lse_ptr,
    scale_log2,
    score_factor,
    table_stride,
    q_stride,
    q_head_stride,
    PAGE_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
    IN_PAIRS: tl.constexpr,
    IS_PACKED: tl.constexpr,
):
    """Attention of all requests of a group to the keys that they share, which are read once.

    Grid: any number of programs, which share out groups, parts of keys, and KV heads.
    Mutates: prefix `[num_requests, num_heads, MOST_PARTS, HEAD_DIM]` float32, and the logarithms
    of sums, at members and parts that there are.
    """
    BLOCK_ROWS: tl.constexpr = MEMBERS * BLOCK_GROUP
    num_heads: tl.constexpr = GROUP * NUM_KV_HEADS
    rows = tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    let_next_start(OVERLAP)
    wait_for_inputs(OVERLAP)
    num_groups = tl.load(counts_ptr)
    num_parts = tl.load(counts_ptr + 1)
    num_items = num_groups * num_parts * NUM_KV_HEADS
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        kv_head = item % NUM_KV_HEADS
        part = item // NUM_KV_HEADS % num_parts
        at_group = groups_ptr + 3 * (item // NUM_KV_HEADS // num_parts)
        first = tl.load(at_group)
        count = tl.load(at_group + 1)
        num_keys = tl.load(at_group + 2) * PAGE_SIZE
        keys_of_part = tl.cdiv(tl.cdiv(num_keys, BLOCK_KEYS), num_parts) * BLOCK_KEYS
        first_key = part * keys_of_part
        last_key = tl.minimum(first_key + keys_of_part, num_keys)

        is_row = (rows // BLOCK_GROUP < count) & (rows % BLOCK_GROUP < GROUP)
        requests = tl.load(order_ptr + first + rows // BLOCK_GROUP, mask=is_row, other=0)
        requests = requests.to(tl.int64)
        q_heads = kv_head * GROUP + rows % BLOCK_GROUP
        q_rows = q_ptr + requests[:, None] * q_stride + q_heads[:, None] * q_head_stride
        table = page_table_ptr + tl.load(order_ptr + first).to(tl.int64) * table_stride
        is_stored = is_row[:, None] & is_dim[None, :]
        peak = tl.full([BLOCK_ROWS], -1.0e30, tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        if IN_PAIRS:
            acc, total, peak = add_codes(
                acc, total, peak, q_rows, is_row, kv_ptr, table, kv_head, first_key, last_key,
                scale_log2, score_factor, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_KEYS,
                HAS_SOFTCAP, IS_PACKED,
            )  # fmt: skip
        else:
            q = tl.load(q_rows + dims[None, :], mask=is_stored, other=0.0)
            acc, total, peak = add_keys(
                acc, total, peak, q, kv_ptr, table, kv_head, first_key, last_key, scale_log2,
                score_factor, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM, BLOCK_KEYS, HAS_SOFTCAP, PRECISION,
            )  # fmt: skip
        at_row = (requests * num_heads + q_heads) * MOST_PARTS + part
        out = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(prefix_ptr + at_row[:, None] * HEAD_DIM + dims[None, :], out, mask=is_stored)
        lse = tl.where(total > 0, peak + tl.log2(total), -1.0e30)
        tl.store(prefix_lse_ptr + at_row, lse, mask=is_row)
