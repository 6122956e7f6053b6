// The frames of the replication stream: any bytes, in any pieces, give frames or an error, and a frame that is accepted
// can be encoded again.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "replication/frames.h"

using namespace sluice;               // NOLINT: a fuzz target
using namespace sluice::replication;  // NOLINT

namespace {

// The CRC keeps a fuzzer out; so the input is a list of messages, framed here with a CRC that fits.
void frame_up(ByteView input, Bytes& stream) {
  while (input.size() > 2) {
    const std::size_t size = std::min<std::size_t>(load_be<std::uint16_t>(input.data()), input.size() - 2);
    append_raw_frame(stream, input.subspan(2, size));
    input = input.subspan(2 + size);
  }
}

void read_all(ByteView stream, std::size_t step) {
  FrameReader reader;
  while (!stream.empty()) {
    const std::size_t taken = reader.feed(stream.first(std::min(step, stream.size())));
    if (taken == 0) std::abort();
    stream = stream.subspan(taken);
    Frame frame;
    for (;;) {
      const auto there = reader.next(frame);
      if (there.has_error()) return;
      if (!*there) break;
      if (std::holds_alternative<Unknown>(frame.message)) continue;
      Bytes again;
      append_frame(again, frame.message, frame.payload);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView input = std::as_bytes(std::span(data, size));
  read_all(input, 1 << 20);
  Bytes stream;
  frame_up(input, stream);
  read_all(stream, 1 << 20);
  read_all(stream, 7);
  return 0;
}
