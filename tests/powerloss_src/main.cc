// powerloss --seed N --points N --steps N [--world primary|replica|both] [--at POINT --sample N] [--forget SUFFIX] [--keep]: see
// docs/TESTING.md.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>

#include "base/log.h"
#include "tests/powerloss_src/app_mount.h"
#include "tests/powerloss_src/primary_node.h"
#include "tests/powerloss_src/world.h"

namespace sluice::powerloss {
namespace {

struct Options {
  std::uint64_t seed = 1;
  std::uint64_t points = 1000;
  int steps = 120;
  std::string world = "both";
  std::int64_t at = -1;  ///< only this point of the first trace
  std::int64_t sample = 0;
  bool keep = false;
  bool verbose = false;
  std::uint64_t most_failures = 1;
};

constexpr std::uint64_t kPointsOfATrace = 400;

struct Totals {
  std::uint64_t points = 0;
  std::uint64_t images_of_sqlite_damage = 0;
  std::uint64_t failures = 0;
  std::uint64_t operations = 0;
};

Policy policy_of(std::mt19937_64& random) {
  static constexpr Data kinds[] = {Data::none, Data::all, Data::prefix, Data::prefix, Data::luck, Data::luck};
  return {random() % 2 == 0 ? Names::journal : Names::names, kinds[random() % 6]};
}

const char* name_of(Policy policy) {
  static const char* const names[2][4] = {{"journal/none", "journal/all", "journal/prefix", "journal/luck"},
                                          {"names/none", "names/all", "names/prefix", "names/luck"}};
  return names[policy.names == Names::journal ? 0 : 1][static_cast<int>(policy.data)];
}

class Run {
 public:
  Run(const Options& options, std::string scratch) : options_(options), scratch_(std::move(scratch)) {}

  Totals go() {
    for (std::uint64_t seed = options_.seed; totals_.points < options_.points && totals_.failures < options_.most_failures; ++seed) {
      for (const char* world : {"primary", "replica"}) {
        if (options_.world == "both" || options_.world == world) trace(world, seed);
      }
      if (options_.at >= 0) break;
    }
    return totals_;
  }

 private:
  void trace(const std::string& kind, std::uint64_t seed) {
    const std::string directory = scratch_ + "/" + kind + "-" + std::to_string(seed);
    make_directory(directory);
    const auto world = kind == "primary" ? make_primary_world(seed, directory) : make_replica_world(seed, directory);
    world->record(options_.steps);
    totals_.operations += world->ops().size();
    Disk disk(world->ops());
    const std::size_t all = world->ops().size();
    const std::uint64_t wanted = std::min(kPointsOfATrace, options_.points - std::min(options_.points, totals_.points));
    // Every point between two operations in turn, as often as it takes.
    for (std::uint64_t i = 0; i < wanted && totals_.failures < options_.most_failures; ++i) {
      const std::size_t point = options_.at >= 0 ? static_cast<std::size_t>(options_.at) : all * (i + 1) / wanted;
      disk.advance(point);
      one(*world, disk, kind, seed, point, options_.at >= 0 ? static_cast<std::uint64_t>(options_.sample) : i, directory);
      if (options_.at >= 0) break;
    }
    if (!options_.keep) remove_tree(directory);
  }

  void one(World& world, const Disk& disk, const std::string& kind, std::uint64_t seed, std::size_t point, std::uint64_t sample,
           const std::string& directory) {
    std::mt19937_64 random(seed * 1'000'003 + point * 7919 + sample);
    const Policy policy = policy_of(random);
    const std::string image = directory + "/image";
    remove_tree(image);
    make_directory(image);
    const Image what = disk.sample(random, policy);
    write_image(what, image);
    ++totals_.points;
    const std::string wrong = world.check(image, point);
    if (wrong.empty()) return;
    if (wrong.find("SQLITE: ") != std::string::npos) {
      ++totals_.images_of_sqlite_damage;
      return;
    }
    ++totals_.failures;
    std::printf("FAILED: %s, seed %llu, point %zu of %zu, sample %llu (%s): %s\n  again: tests/powerloss --steps %d --seed %llu --world %s --at %zu --sample %llu --keep\n",
                kind.c_str(), static_cast<unsigned long long>(seed), point, world.ops().size(), static_cast<unsigned long long>(sample),
                name_of(policy), wrong.c_str(), options_.steps, static_cast<unsigned long long>(seed), kind.c_str(), point,
                static_cast<unsigned long long>(sample));
    if (!options_.keep) return;
    const std::string kept = directory + "/failed";
    remove_tree(kept);
    make_directory(kept);
    write_image(what, kept);
    std::printf("  image: %s\n", kept.c_str());
    dump(world.ops(), point);
  }

  static void dump(const std::vector<Op>& ops, std::size_t point) {
    static const char* const kinds[] = {"write", "truncate", "sync", "create", "mkdir", "unlink", "rmdir", "rename", "syncdir", "note"};
    for (std::size_t i = 0; i < point; ++i) {
      const Op& op = ops[i];
      if (op.kind == OpKind::write && i + 100 < point) continue;
      std::printf("  %zu %s file %d dir %d %s%s%s offset %llu bytes %zu note %d\n", i, kinds[static_cast<int>(op.kind)], op.file, op.directory,
                  op.name.c_str(), op.to_name.empty() ? "" : " -> ", op.to_name.c_str(), static_cast<unsigned long long>(op.offset),
                  op.data.size(), op.note);
    }
  }

  const Options options_;
  const std::string scratch_;
  Totals totals_;
};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--keep" || flag == "--verbose") {
      (flag == "--keep" ? options.keep : options.verbose) = true;
      continue;
    }
    if (i + 1 >= argc) return false;
    const std::string value = argv[++i];
    if (flag == "--seed") {
      options.seed = std::stoull(value);
    } else if (flag == "--points") {
      options.points = std::stoull(value);
    } else if (flag == "--steps") {
      options.steps = std::stoi(value);
    } else if (flag == "--world") {
      options.world = value;
    } else if (flag == "--at") {
      options.at = std::stoll(value);
    } else if (flag == "--sample") {
      options.sample = std::stoll(value);
    } else if (flag == "--forget") {
      forget_syncs(value);
    } else if (flag == "--failures") {
      options.most_failures = std::stoull(value);
    } else {
      return false;
    }
  }
  return true;
}

std::string scratch_directory;

void clean_up_and_die(int) {
  // Nothing is mounted and nobody else runs: only files are left.
  remove_tree(scratch_directory);
  ::_exit(1);
}

int main_inner(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, "powerloss [--seed N] [--points N] [--steps N] [--world primary|replica|both] [--at POINT --sample N] "
                         "[--failures N] [--forget SUFFIX] [--keep] [--verbose]\n");
    return 2;
  }
  if (options.verbose) {
    init_logging({.json = false, .debug = true});
  } else {
    silence_logging();
  }
  // In memory: nothing here depends on the file system, and there are thousands of images.
  std::string scratch = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm/sluice-powerloss-XXXXXX" : "/tmp/sluice-powerloss-XXXXXX";
  if (::mkdtemp(scratch.data()) == nullptr) return 2;
  scratch_directory = scratch;
  ::signal(SIGTERM, clean_up_and_die);
  ::signal(SIGINT, clean_up_and_die);
  AppMount::instance().install();
  const auto began = std::chrono::steady_clock::now();
  const Totals totals = Run(options, scratch).go();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  std::printf("%llu images of %llu operations in %.1f s; %llu where SQLite itself finds damage; %llu failures\n",
              static_cast<unsigned long long>(totals.points), static_cast<unsigned long long>(totals.operations), seconds,
              static_cast<unsigned long long>(totals.images_of_sqlite_damage), static_cast<unsigned long long>(totals.failures));
  if (!options.keep) remove_tree(scratch);
  return totals.failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sluice::powerloss

int main(int argc, char** argv) {
  return sluice::powerloss::main_inner(argc, argv);
}
