//! IPv4 lookups, eight addresses to a vector (AVX-512), of tables that have root words (`direct.rs`).
//!
//! A step of a lookup is the same for all addresses: from where the next cell is to what it says. Eight of them are
//! one vector: the places are computed in it, stored, and the cells loaded one by one and put together again, which
//! takes half the time of a gather. A leaf is read as the cell that it is in, so that every step loads the same. A
//! lookup is then some twelve instructions in place of thirty.
//!
//! Where the root is in registers (`few.rs`) a lookup is two loads, and the root is done in vectors: to take the places
//! out of a vector takes as long as a load and what comes of it, so that it pays once and not twice. Slots are read
//! address by address, six instructions each, the last of which puts the leaf into the answers.
//!
//! By gathers such tables are in `few.rs`. The twin is `narrow.rs`.

use core::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_castpd_si128, _mm_castsi128_pd, _mm_cvtepu8_epi16,
    _mm_insert_epi8, _mm_insert_epi16, _mm_loadh_pd, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_mask_mov_epi16, _mm_set1_epi16, _mm_setzero_si128, _mm_testn_epi16_mask,
    _mm_unpackhi_epi64, _mm_unpacklo_epi64, _mm256_castsi128_si256, _mm256_inserti128_si256,
    _mm512_add_epi64, _mm512_and_si512, _mm512_andnot_si512, _mm512_broadcast_i64x4,
    _mm512_castsi256_si512, _mm512_castsi512_si256, _mm512_cmpeq_epi32_mask, _mm512_cvtepi64_epi16,
    _mm512_cvtepu32_epi64, _mm512_extracti64x4_epi64, _mm512_inserti64x4, _mm512_mask_add_epi64,
    _mm512_mask_mov_epi64, _mm512_movepi64_mask, _mm512_mullo_epi32, _mm512_or_si512,
    _mm512_permutex2var_epi32, _mm512_permutex2var_epi64, _mm512_permutexvar_epi32,
    _mm512_permutexvar_epi64, _mm512_popcnt_epi32, _mm512_popcnt_epi64, _mm512_reduce_or_epi64,
    _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_slli_epi64,
    _mm512_sllv_epi64, _mm512_srai_epi64, _mm512_srli_epi32, _mm512_srli_epi64, _mm512_srlv_epi32,
    _mm512_srlv_epi64, _mm512_sub_epi64, _mm512_ternarylogic_epi64, _mm512_test_epi64_mask,
    _mm512_testn_epi64_mask,
};
use core::{mem, ptr};

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch::{self, LANES, key_of};
use super::super::few::{Few as FewRoot, PLACE_SHIFT, PLACES, place_of};
use super::super::flat::FLAT_WORDS;
use super::super::node::{CHUNK_STRIDE, DENSE_BITS, DENSE_SLOTS, NARROW_CHILD, ROOT_STRIDE};
use super::narrow::{CHUNK_CELL, Group, Table, leaf_at, one, slot_word, tails};

/// A group in a table none of whose chunks is flat.
pub(super) struct Chunks;

impl Group for Chunks {
    type Table<'a> = Table<'a>;

    #[inline(always)]
    fn one(table: &Table<'_>, key: u32) -> u16 {
        one(table, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        table: &Table<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: whoever takes this group was compiled for these instructions, too: `lookup_avx512`.
        unsafe { chunks(table, addresses, next_hops) };
    }
}

/// A group in a table all of whose chunks are flat, with leaves of one octet or of two.
pub(super) struct Flat<const WIDE: bool>;

impl<const WIDE: bool> Group for Flat<WIDE> {
    type Table<'a> = Table<'a>;

    #[inline(always)]
    fn one(table: &Table<'_>, key: u32) -> u16 {
        one(table, key)
    }

    #[inline(always)]
    fn lookup<A: Address>(
        table: &Table<'_>,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: as for `Chunks`.
        unsafe { flat::<A, WIDE>(table, addresses, next_hops) };
    }
}

/// A group in such a table whose root is in `N` registers (`few.rs`), with a default route or without.
pub(super) struct Few<const N: usize, const DEFAULT: bool, const WIDE: bool>;

impl<const N: usize, const DEFAULT: bool, const WIDE: bool> Group for Few<N, DEFAULT, WIDE> {
    type Table<'a> = FewRoot;

    #[inline(always)]
    fn one(root: &FewRoot, key: u32) -> u16 {
        let slot = key >> (32 - ROOT_STRIDE);
        let at = place_of(slot, root.factor, N * EIGHT);
        let own = root.tags.get(at) == Some(&slot);
        let first = root.firsts.get(at).copied().unwrap_or_default();
        let slot = u64::from(key >> 8) % (1 << CHUNK_STRIDE);
        let place = if own { first + 8 * slot } else { root.nothing };
        batch::overlay(
            leaf_at::<WIDE>(slot_word(place), u64::from(key & 0xff)),
            root.code,
        )
    }

    #[inline(always)]
    fn lookup<A: Address>(
        root: &FewRoot,
        addresses: &[A; LANES],
        next_hops: &mut [Option<NextHopId>; LANES],
    ) {
        // SAFETY: as for `Chunks`.
        unsafe { few::<A, N, DEFAULT, WIDE>(root, addresses, next_hops) };
    }
}

/// Root word, group cell, leaf.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vpopcntdq,popcnt,lzcnt,bmi1,bmi2,movbe")]
fn chunks<A: Address>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let keys = keys_of(addresses);
    let mut words = [_mm512_setzero_si512(); VECTORS];
    let mut slots = [_mm512_setzero_si512(); VECTORS];
    let mut places = [Places::NONE; VECTORS];
    let eights = addresses.as_chunks::<EIGHT>().0.iter();
    for ((((key, eight), word), slot), places) in keys
        .iter()
        .zip(eights)
        .zip(&mut words)
        .zip(&mut slots)
        .zip(&mut places)
    {
        let (root, top) = root(table, eight);
        // `cell_of`: the groups up to this one, the one in question leftmost.
        let after = _mm512_andnot_si512(
            _mm512_srli_epi64::<{ 8 + DENSE_BITS }>(*key),
            _mm512_set1_epi64(CHUNK_GROUPS - 1),
        );
        let upto = _mm512_sllv_epi64(top, after);
        let last = _mm512_set1_epi64(DENSE_SLOTS as i64 - 1);
        *slot = _mm512_mask_mov_epi64(
            last,
            _mm512_movepi64_mask(upto),
            _mm512_srli_epi64::<8>(*key),
        );
        *word = root;
        places.set(cell_after(
            address_of(root),
            CHUNK_CELL - 1,
            _mm512_popcnt_epi64(upto),
        ));
    }
    for ((slot, word), places) in slots.iter().zip(&words).zip(&mut places) {
        let cell = load(places);
        places.set(leaf(address_of(*word), cell, *slot));
    }
    let mut seen = _mm512_setzero_si512();
    for ((word, places), next_hops) in words.iter().zip(&mut places).zip(groups_of(next_hops)) {
        let code = pick(read(places), *word);
        seen = _mm512_or_si512(seen, code);
        answer(next_hops, code);
    }
    if _mm512_reduce_or_epi64(seen).cast_unsigned() & NARROW_CHILD != 0 {
        tails(table, addresses, next_hops);
    }
}

/// Root word, slot, leaf.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,lzcnt,bmi1,bmi2,movbe")]
fn flat<A: Address, const WIDE: bool>(
    table: &Table<'_>,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let keys = keys_of(addresses);
    let mut codes = [_mm_setzero_si128(); VECTORS];
    let mut slots = [Places::NONE; VECTORS];
    let mut octets = Octets::NONE;
    for (number, sixteen) in addresses.as_chunks().0.iter().enumerate() {
        let last = _mm512_and_si512(keys_of_sixteen(sixteen), _mm512_set1_epi32(0xff));
        octets.set(2 * EIGHT * number, last);
    }
    let eights = addresses.as_chunks::<EIGHT>().0.iter();
    for (((key, eight), code), slots) in keys.iter().zip(eights).zip(&mut codes).zip(&mut slots) {
        let (word, _) = root(table, eight);
        *code = _mm512_cvtepi64_epi16(word);
        let slot = bits::<8>(*key, 1 << CHUNK_STRIDE);
        slots.set(cell_after(address_of(word), FLAT_WORDS, slot));
    }
    let places = slots.iter().zip((0..).step_by(EIGHT));
    for ((code, (slots, first)), next_hops) in codes.iter().zip(places).zip(groups_of(next_hops)) {
        let said = slots_say::<WIDE>(slots, &octets, first);
        store(next_hops, overlay(said, *code));
    }
}

/// Slot, leaf: the root is in registers, and what it says is a slot's place. From there on one address after the other
/// in few instructions: places taken out of vectors a second time take longer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,lzcnt,bmi1,bmi2,movbe")]
fn few<A: Address, const N: usize, const DEFAULT: bool, const WIDE: bool>(
    few: &FewRoot,
    addresses: &[A; LANES],
    next_hops: &mut [Option<NextHopId>; LANES],
) {
    let (firsts, tags) = (registers::<N>(&few.firsts), tags::<N>(&few.tags));
    let factor = _mm512_set1_epi32(few.factor.cast_signed());
    let nothing = _mm512_set1_epi64(few.nothing.cast_signed());
    let mut slots = [Places::NONE; VECTORS];
    let mut octets = Octets::NONE;
    let (sixteens, _) = addresses.as_chunks();
    let (pairs, _) = slots.as_chunks_mut();
    for (number, (sixteen, [low, high])) in sixteens.iter().zip(pairs).enumerate() {
        let key = keys_of_sixteen(sixteen);
        let root = _mm512_srli_epi32::<{ 32 - ROOT_STRIDE as u32 }>(key);
        let at = _mm512_srli_epi32::<PLACE_SHIFT>(_mm512_mullo_epi32(root, factor));
        let own = _mm512_cmpeq_epi32_mask(root, select_tags(&tags, at));
        // Eight times the slot.
        let slot = _mm512_and_si512(
            _mm512_srli_epi32::<5>(key),
            _mm512_set1_epi32(8 * ((1 << CHUNK_STRIDE) - 1)),
        );
        let [at, slot] = [at, slot].map(|all| {
            [
                _mm512_cvtepu32_epi64(_mm512_castsi512_si256(all)),
                _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<1>(all)),
            ]
        });
        let [first, second] = at.map(|at| select(&firsts, at));
        let [low_slot, high_slot] = slot;
        let [low_own, high_own] = own.to_le_bytes();
        low.set(_mm512_mask_add_epi64(nothing, low_own, first, low_slot));
        high.set(_mm512_mask_add_epi64(nothing, high_own, second, high_slot));
        octets.set(
            2 * EIGHT * number,
            _mm512_and_si512(key, _mm512_set1_epi32(0xff)),
        );
    }
    let default = _mm_set1_epi16(few.code.cast_signed());
    // One by one, since a loop would be kept as one.
    let [a, b, c, d] = &slots;
    let codes = [
        slots_say::<WIDE>(a, &octets, 0),
        slots_say::<WIDE>(b, &octets, EIGHT),
        slots_say::<WIDE>(c, &octets, 2 * EIGHT),
        slots_say::<WIDE>(d, &octets, 3 * EIGHT),
    ];
    for (code, next_hops) in codes.into_iter().zip(groups_of(next_hops)) {
        let code = if DEFAULT {
            overlay(code, default)
        } else {
            code
        };
        store(next_hops, code);
    }
}

/// What flat chunks that have words at `slots` say to eight addresses whose last octets are `octets` from `first` on, 16
/// bits each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt,lzcnt,bmi1,bmi2,movbe")]
fn slots_say<const WIDE: bool>(slots: &Places, octets: &Octets, first: usize) -> __m128i {
    let codes = _mm_setzero_si128();
    let codes = with_slot::<0, WIDE>(codes, slots, octets.at(first));
    let codes = with_slot::<1, WIDE>(codes, slots, octets.at(first + 1));
    let codes = with_slot::<2, WIDE>(codes, slots, octets.at(first + 2));
    let codes = with_slot::<3, WIDE>(codes, slots, octets.at(first + 3));
    let codes = with_slot::<4, WIDE>(codes, slots, octets.at(first + 4));
    let codes = with_slot::<5, WIDE>(codes, slots, octets.at(first + 5));
    let codes = with_slot::<6, WIDE>(codes, slots, octets.at(first + 6));
    let codes = with_slot::<7, WIDE>(codes, slots, octets.at(first + 7));
    if WIDE {
        codes
    } else {
        _mm_cvtepu8_epi16(codes)
    }
}

/// `codes` with what the flat chunk says to address `I`, whose last octet is `octet`, at its place, put there by the load.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt,lzcnt,bmi1,bmi2,movbe")]
fn with_slot<const I: i32, const WIDE: bool>(
    codes: __m128i,
    slots: &Places,
    octet: u64,
) -> __m128i {
    let word = slot_word(slots.at::<I>() as u64);
    let leaf = leaf_at::<WIDE>(word, octet);
    if WIDE {
        _mm_insert_epi16::<I>(codes, leaf.into())
    } else {
        _mm_insert_epi8::<I>(codes, leaf.into())
    }
}

/// `codes`, or what is `below` them where they are none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn overlay(codes: __m128i, below: __m128i) -> __m128i {
    _mm_mask_mov_epi16(codes, _mm_testn_epi16_mask(codes, codes), below)
}

/// The addresses as numbers, eight to a vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn keys_of<A: Address>(addresses: &[A; LANES]) -> [__m512i; VECTORS] {
    let mut keys = [_mm512_setzero_si512(); VECTORS];
    let (eights, _) = addresses.as_chunks::<EIGHT>();
    for (key, eight) in keys.iter_mut().zip(eights) {
        *key = keys_of_eight(eight);
    }
    keys
}

/// Eight addresses as numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn keys_of_eight<A: Address>(addresses: &[A; EIGHT]) -> __m512i {
    let eight = addresses.map(key_of);
    // SAFETY: both are eight 32-bit numbers, and every value is one of each.
    _mm512_cvtepu32_epi64(unsafe { mem::transmute::<[u32; EIGHT], __m256i>(eight) })
}

/// Sixteen addresses as numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn keys_of_sixteen<A: Address>(addresses: &[A; 2 * EIGHT]) -> __m512i {
    // SAFETY: both are sixteen 32-bit numbers, and every value is one of each.
    unsafe { mem::transmute::<[u32; 2 * EIGHT], __m512i>(addresses.map(key_of)) }
}

/// The first `N` times eight of `list`, twice when these are eight.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn tags<const N: usize>(list: &[u32; PLACES]) -> Tags<N> {
    let (halves, _) = list.as_chunks::<{ 2 * EIGHT }>();
    let mut registers = [_mm512_setzero_si512(); 2];
    for (register, half) in registers.iter_mut().zip(halves) {
        // SAFETY: both are sixteen 32-bit numbers, and every value is one of each.
        *register = unsafe { mem::transmute::<[u32; 2 * EIGHT], __m512i>(*half) };
        if N == 1 {
            *register = _mm512_broadcast_i64x4(_mm512_castsi512_si256(*register));
        }
    }
    Tags(registers)
}

/// Tags in registers, of `N` times eight places.
pub(super) struct Tags<const N: usize>([__m512i; 2]);

/// The tags at the places that the last bits of `at` name.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn select_tags<const N: usize>(tags: &Tags<N>, at: __m512i) -> __m512i {
    let [low, high] = tags.0;
    if N == 4 {
        _mm512_permutex2var_epi32(low, at, high)
    } else {
        _mm512_permutexvar_epi32(at, low)
    }
}

/// The first `N` times eight of `list`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn registers<const N: usize>(list: &[u64; PLACES]) -> [__m512i; N] {
    let (eights, _) = list.as_chunks::<EIGHT>();
    let mut registers = [_mm512_setzero_si512(); N];
    for (register, eight) in registers.iter_mut().zip(eights) {
        // SAFETY: both are eight 64-bit numbers, and every value is one of each.
        *register = unsafe { mem::transmute::<[u64; EIGHT], __m512i>(*eight) };
    }
    registers
}

/// What is at the places that the last bits of `place` name, among eight a register.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn select<const N: usize>(registers: &[__m512i; N], place: __m512i) -> __m512i {
    match registers.as_slice() {
        [a] => _mm512_permutexvar_epi64(place, *a),
        [a, b] => _mm512_permutex2var_epi64(*a, place, *b),
        [a, b, c, d] => {
            let high = _mm512_test_epi64_mask(place, _mm512_set1_epi64(16));
            _mm512_mask_mov_epi64(
                _mm512_permutex2var_epi64(*a, place, *b),
                high,
                _mm512_permutex2var_epi64(*c, place, *d),
            )
        }
        [..] => _mm512_setzero_si512(),
    }
}

/// The root words and tops of eight addresses. Their slots are computed one by one: to take them out of a vector would
/// take longer.
#[inline]
#[target_feature(enable = "avx512f")]
fn root<A: Address>(table: &Table<'_>, addresses: &[A; EIGHT]) -> (__m512i, __m512i) {
    let words = table.words.as_ptr();
    let [a, b, c, d, e, f, g, h] = addresses.each_ref().map(|address| {
        let slot = (key_of(*address) >> (32 - ROOT_STRIDE)) as usize;
        // SAFETY: a key has 32 bits, so that the slot is below the number of root words; each is 16 octets.
        unsafe { _mm_loadu_si128(words.wrapping_add(slot).cast()) }
    });
    (
        four_pairs(
            _mm_unpacklo_epi64(a, b),
            _mm_unpacklo_epi64(c, d),
            _mm_unpacklo_epi64(e, f),
            _mm_unpacklo_epi64(g, h),
        ),
        four_pairs(
            _mm_unpackhi_epi64(a, b),
            _mm_unpackhi_epi64(c, d),
            _mm_unpackhi_epi64(e, f),
            _mm_unpackhi_epi64(g, h),
        ),
    )
}

/// `SHIFT` bits of the numbers taken away, and all but those below `count`, a power of two.
#[inline]
#[target_feature(enable = "avx512f")]
fn bits<const SHIFT: u32>(key: __m512i, count: usize) -> __m512i {
    let mask = _mm512_set1_epi64(count as i64 - 1);
    _mm512_and_si512(_mm512_srli_epi64::<SHIFT>(key), mask)
}

/// The address in a word of `direct.rs`.
#[inline]
#[target_feature(enable = "avx512f")]
fn address_of(word: __m512i) -> __m512i {
    _mm512_srai_epi64::<16>(word)
}

/// Where cell `first` + `at` of the blocks at `block` is.
#[inline]
#[target_feature(enable = "avx512f")]
fn cell_after(block: __m512i, first: usize, at: __m512i) -> __m512i {
    let first = _mm512_set1_epi64((first * 8) as i64);
    _mm512_add_epi64(_mm512_add_epi64(block, first), _mm512_slli_epi64::<3>(at))
}

/// Where the leaves of the slots are that the last bits of `slot` name, in dense nodes at `block` whose group cells say
/// `cell`: `leaf_in_group`.
#[inline]
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
fn leaf(block: __m512i, cell: __m512i, slot: __m512i) -> __m512i {
    // The upper halves are shifted out, so that bits of the run starts only are counted.
    let slot = _mm512_ternarylogic_epi64::<AND_OR>(
        slot,
        _mm512_set1_epi64(DENSE_SLOTS as i64 - 1),
        _mm512_set1_epi64(32 << 32),
    );
    let before = _mm512_popcnt_epi32(_mm512_srlv_epi32(cell, slot));
    leaf_after(
        block,
        _mm512_sub_epi64(_mm512_srli_epi64::<48>(cell), before),
    )
}

/// Where leaf `index` after `place` is.
#[inline]
#[target_feature(enable = "avx512f")]
fn leaf_after(place: __m512i, index: __m512i) -> __m512i {
    _mm512_add_epi64(place, _mm512_slli_epi64::<1>(index))
}

/// What the leaves at `places` say, in the low 16 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn read(places: &mut Places) -> __m512i {
    let leaves = places.vector();
    let in_cell = _mm512_set1_epi64(7);
    places.set(_mm512_andnot_si512(in_cell, leaves));
    let octet = _mm512_and_si512(leaves, in_cell);
    _mm512_srlv_epi64(load(places), _mm512_slli_epi64::<3>(octet))
}

/// `code`, or what is `below` it where that is none: 16 bits each, whatever is above them.
#[inline]
#[target_feature(enable = "avx512f")]
fn pick(code: __m512i, below: __m512i) -> __m512i {
    let none = _mm512_testn_epi64_mask(code, _mm512_set1_epi64(0xffff));
    _mm512_mask_mov_epi64(code, none, below)
}

/// The cells at `places`.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(places: &Places) -> __m512i {
    // SAFETY: as `cell` in `narrow.rs`: the places are a group's cell of a dense node, or the cell of one that a leaf is
    // in.
    unsafe { gather(places.each().map(ptr::with_exposed_provenance)) }
}

/// Eight cells in one vector.
///
/// # Safety
///
/// Each of `cells` is aligned to eight octets, and in memory that nobody writes meanwhile.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn gather(cells: [*const u64; EIGHT]) -> __m512i {
    let [a, b, c, d, e, f, g, h] = cells;
    // SAFETY: the caller says so.
    let (ab, cd, ef, gh) = unsafe { (pair(a, b), pair(c, d), pair(e, f), pair(g, h)) };
    four_pairs(ab, cd, ef, gh)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn four_pairs(ab: __m128i, cd: __m128i, ef: __m128i, gh: __m128i) -> __m512i {
    let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(ab), cd);
    let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(ef), gh);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Two cells in one vector.
///
/// # Safety
///
/// As [`gather`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pair(low: *const u64, high: *const u64) -> __m128i {
    // SAFETY: the caller says so.
    unsafe {
        let low = _mm_castsi128_pd(_mm_loadl_epi64(low.cast()));
        _mm_castpd_si128(_mm_loadh_pd(low, high.cast()))
    }
}

/// Writes eight answers, the low 16 bits of `codes`.
#[inline]
#[target_feature(enable = "avx512f")]
fn answer(next_hops: &mut [Option<NextHopId>; EIGHT], codes: __m512i) {
    store(next_hops, _mm512_cvtepi64_epi16(codes));
}

/// Writes eight answers.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(next_hops: &mut [Option<NextHopId>; EIGHT], codes: __m128i) {
    // SAFETY: both are eight 16-bit numbers, and every value is one of each.
    let codes = unsafe { mem::transmute::<__m128i, [u16; EIGHT]>(codes) };
    *next_hops = codes.map(NextHopId::from_code);
}

fn groups_of(
    next_hops: &mut [Option<NextHopId>; LANES],
) -> impl Iterator<Item = &mut [Option<NextHopId>; EIGHT]> {
    next_hops.as_chunks_mut().0.iter_mut()
}

/// Eight places, where they can be taken one by one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Places([usize; EIGHT]);

impl Places {
    pub(super) const NONE: Self = Self([0; EIGHT]);

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn of(places: __m512i) -> Self {
        // SAFETY: as in `set`.
        Self(unsafe { mem::transmute::<__m512i, [usize; EIGHT]>(places) })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set(&mut self, places: __m512i) {
        // SAFETY: both are eight 64-bit numbers, and every value is one of each.
        self.0 = unsafe { mem::transmute::<__m512i, [usize; EIGHT]>(places) };
    }

    /// The places one by one. To take a vector apart in registers takes three instructions a place, which is why the
    /// compiler must not know what was stored.
    #[inline]
    pub(super) fn each(&self) -> [usize; EIGHT] {
        // SAFETY: the place is a live number of this very array.
        self.0
            .each_ref()
            .map(|place| unsafe { ptr::from_ref(place).read_volatile() })
    }

    /// Place `I` in the same way.
    #[inline(always)]
    fn at<const I: i32>(&self) -> usize {
        const { assert!((I as usize) < EIGHT) };
        // SAFETY: a live number of this very array.
        unsafe { self.0.as_ptr().wrapping_add(I as usize).read_volatile() }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn vector(&self) -> __m512i {
        // SAFETY: as in `set`.
        unsafe { mem::transmute::<[usize; EIGHT], __m512i>(self.0) }
    }
}

/// The last octets of a group's addresses, where they can be taken one by one.
#[repr(C, align(64))]
struct Octets([u32; LANES]);

impl Octets {
    const NONE: Self = Self([0; LANES]);

    /// Sets sixteen of them, from `first` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set(&mut self, first: usize, octets: __m512i) {
        // SAFETY: both are sixteen 32-bit numbers, and every value is one of each.
        let octets = unsafe { mem::transmute::<__m512i, [u32; 2 * EIGHT]>(octets) };
        if let Some(places) = self.0.get_mut(first..first + 2 * EIGHT) {
            places.copy_from_slice(&octets);
        }
    }

    /// The octet of lane `at`, as [`Places::each`] has places.
    #[inline(always)]
    fn at(&self, at: usize) -> u64 {
        debug_assert!(at < LANES, "lane {at}");
        // SAFETY: callers ask for one of four times eight lanes, a live number of this very array.
        u64::from(unsafe { self.0.as_ptr().wrapping_add(at).read_volatile() })
    }
}

/// (a & b) | c.
const AND_OR: i32 = 0b1110_1010;
/// Groups of a chunk.
const CHUNK_GROUPS: i64 = (1 << CHUNK_STRIDE) / DENSE_SLOTS as i64;
/// Addresses of a vector.
pub(super) const EIGHT: usize = 8;
pub(super) const VECTORS: usize = LANES / EIGHT;
