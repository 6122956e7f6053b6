// The parts on their own: wal-index lookups, image files, the idle timer.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>

#include <map>
#include <random>

#include "storage/apply/idle_timer.h"
#include "storage/apply/image_file.h"
#include "storage/apply/wal_index_map.h"
#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

TEST(WalIndexMap, FindsTheLastFrameOfEveryPageUpToMxFrame) {
  TempDir dir;
  Connection(dir.path() + "/app.db").exec("CREATE TABLE t(a)");
  PlainDirAccess access(dir.path());
  auto files = apply::LiveFiles::open(access, "app.db");
  ASSERT_TRUE(files.has_value());
  ASSERT_TRUE((*files)->lock_shared(1000).has_value());
  ASSERT_TRUE((*files)->open_wal(4096, 1000).has_value());
  apply::WalIndexMap index(**files);
  constexpr std::uint32_t kFrames = 20'000;  // several blocks
  ASSERT_TRUE(index.reserve(kFrames).has_value());
  std::mt19937 generator(1);
  const auto random = [&generator] { return static_cast<std::uint32_t>(generator()); };
  std::vector<std::uint32_t> pages(kFrames);
  for (auto& page : pages) page = 1 + random() % 3000;
  std::uint32_t frame = 1;
  while (frame <= kFrames) {
    const std::uint32_t n = std::min<std::uint32_t>(1 + random() % 700, kFrames - frame + 1);
    const std::vector<std::uint32_t> batch(pages.begin() + frame - 1, pages.begin() + frame - 1 + n);
    if (random() % 3 == 0) {
      // An append that was never published is forgotten by the next one.
      const std::vector<std::uint32_t> never(std::min<std::uint32_t>(50, kFrames - frame + 1), 5000);
      ASSERT_TRUE(index.append(frame, never).has_value());
    }
    ASSERT_TRUE(index.append(frame, batch).has_value());
    frame += n;
  }
  for (const std::uint32_t mx : {0u, 1u, 4062u, 4063u, 8158u, 8159u, 15'000u, kFrames}) {
    std::map<std::uint32_t, std::uint32_t> last;
    for (std::uint32_t f = 1; f <= mx; ++f) last[pages[f - 1]] = f;
    for (std::uint32_t page = 1; page <= 3001; ++page) {
      ASSERT_EQ(index.find(Pgno(page), mx), last.contains(page) ? last[page] : 0) << page << " up to " << mx;
    }
  }
  for (std::uint32_t f = 1; f <= kFrames; ++f) ASSERT_EQ(index.page_of(f), pages[f - 1]);
}

TEST(ImageFile, GathersRunsAndKeepsTheLastVersion) {
  TempDir dir;
  auto image = apply::ImageFile::create(real_file_system(), dir.path() + "/image", 512);
  ASSERT_TRUE(image.has_value());
  std::mt19937 generator(2);
  const auto random = [&generator] { return static_cast<std::uint32_t>(generator()); };
  Bytes expected(512 * 64);
  for (int i = 0; i < 500; ++i) {
    const std::uint32_t p = 1 + random() % 64;
    Bytes page(512, static_cast<std::byte>(random()));
    std::ranges::copy(page, expected.begin() + (p - 1) * 512);
    ASSERT_TRUE(image->write(Pgno(p), page).has_value());
  }
  ASSERT_TRUE(image->finish(64).has_value());
  EXPECT_EQ(file_content(dir.path() + "/image"), expected);
  Bytes part(512 * 3);
  ASSERT_TRUE(image->read(Pgno(10), part).has_value());
  EXPECT_TRUE(std::ranges::equal(part, ByteView(expected).subspan(512 * 9, 512 * 3)));
}

TEST(IdleTimer, CallsOnceAfterTheLastTouch) {
  std::atomic<int> calls{0};
  apply::IdleTimer timer(30, [&](const std::string& name) {
    EXPECT_EQ(name, "app.db");
    ++calls;
  });
  for (int i = 0; i < 100; ++i) timer.touch("app.db");
  EXPECT_TRUE(eventually([&] { return calls == 1; }));
  timer.touch("app.db");
  EXPECT_TRUE(eventually([&] { return calls == 2; }));
  timer.stop();
  timer.touch("app.db");
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace sluice::storage::apply_test
