#pragma once
// Variants of Digester's inner loop, one file per instruction set.

#include <cstddef>

namespace baton::transfer {
void digest_update_avx2(void* state, const void* bytes, std::size_t count);
}
