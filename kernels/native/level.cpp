// The operators for one level of a processor's instructions: compiled once for each, in a namespace of its own. It uses
// nothing of the standard library, whose inline functions the linker would take from any level.
#include "level.h"

namespace tempme::TEMPME_LEVEL {

#include "match.h"
#include "merge.h"
#include "split.h"

extern const Level functions;
const Level functions = {
    {unit_keys<Float32>, unit_keys<Float16>, unit_keys<BFloat16>},
    unit_parts,
    score,
    select,
    {split<Float32>, split<Float16>, split<BFloat16>},
    link,
    {merge<Float32>, merge<Float16>, merge<BFloat16>},
};

}  // namespace tempme::TEMPME_LEVEL
