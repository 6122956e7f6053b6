// The process that maps wal-indexes for a node of the tests; its socket is descriptor 3.
#include "storage/apply/index_helper.h"

int main() { return sluice::storage::apply::serve_index_helper(3); }
