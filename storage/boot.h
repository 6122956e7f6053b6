// Which run of the machine this is: what was written in an earlier one and never synced may be lost.
#pragma once

#include <cstdint>

namespace sluice::storage {

/// Names the time since the machine started; random where the kernel does not tell.
std::uint64_t boot_number();
/// From now on boot_number() is this: a test has the power fail. 0: the machine's again.
void set_boot_number_for_tests(std::uint64_t number);

}  // namespace sluice::storage
