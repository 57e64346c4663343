// The instructions of AMX, Intel's since Sapphire Rapids: eight registers ("tiles") of sixteen rows of 64 bytes each. As text for
// the assembler, since compilers know them as late as processors do.
#pragma once

#ifdef __linux__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace poolgraph {

// Whether the processor multiplies tiles of bytes and of bfloat16, and the system keeps them for this process: Linux saves
// tiles for those alone who ask for it. The environment may say POOLGRAPH_AMX=0, to compare with what vectors answer.
inline bool has_amx() {
#ifdef __linux__
  static const bool has = [] {
    constexpr unsigned kBFloats = 1u << 22, kTiles = 1u << 24, kBytes = 1u << 25, kAll = kBFloats | kTiles | kBytes;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    const char* wanted = std::getenv("POOLGRAPH_AMX");
    if (wanted && std::strcmp(wanted, "0") == 0) return false;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
#else
  return false;
#endif
}

// What ldtilecfg reads: the palette, and of each tile the bytes of a row and the number of rows.
struct TileShapes {
  uint8_t palette = 1, rest[15] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

inline void set_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease" ::); }

template <int kTile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
inline void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
}
template <int kTile>
inline void store_tile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
}

// sums += four products of unsigned bytes of rows and signed ones of columns, in 32 bits.
template <int kSums, int kRows, int kColumns>
inline void multiply_bytes() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kColumns));
}
// sums += two products of bfloat16, in float32.
template <int kSums, int kRows, int kColumns>
inline void multiply_bfloats() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kColumns));
}

}  // namespace poolgraph
