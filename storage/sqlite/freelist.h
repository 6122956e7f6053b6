// What a rollback transaction overwrites without a trace in its journal.
//
// The content of a leaf page of the freelist means nothing, so SQLite does not save it before it uses the page again
// (btree.c allocateBtreePage(), the noContent flag), and a rollback does not bring it back. Who knows the pages of a hot
// journal therefore does not know all pages that were written.
#pragma once

#include "base/function_ref.h"
#include "storage/sqlite/journal.h"

namespace sluice::sqlite {

/// Calls `visit` with each leaf of the freelist as it was before the transaction of `journal`, which may be half written to
/// `database`: pages that the journal saved are read from it. Errc::not_found as scan_journal(); Errc::corrupt: the
/// freelist leads nowhere (some leaves may have been visited).
Result<void> visit_free_leaves_before(const File& database, const File& journal, FunctionRef<void(Pgno)> visit);

}  // namespace sluice::sqlite
