// The torture worker: one process of the torture test. tests/torture starts many of them.
//   worker ROLE --ledgers DIR [--seed N] [--writer N] [--node 0|1] [--trail FILE] [--scratch DIR]
//   [--page-size N]
//          ID:PROFILE:PATH…
//   worker trail FILE
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string_view>

#include "database.h"
#include "ledger.h"
#include "roles.h"

namespace sluice::torture {

void report(Control& control, const std::string& where, const SqlError& error) {
  if (error.is_busy()) {
    ++control.busy;
  } else {
    control.sql_error(where + ": " + error.what());
  }
}

namespace {

Target parse_target(const std::string& text, const std::string& ledgers) {
  const std::size_t first = text.find(':');
  const std::size_t second = text.find(':', first + 1);
  if (first == std::string::npos || second == std::string::npos)
    throw std::runtime_error("not ID:PROFILE:PATH: " + text);
  Target target;
  target.id = text.substr(0, first);
  target.profile = text.substr(first + 1, second - first - 1);
  target.path = text.substr(second + 1);
  target.ledger = ledgers + "/" + target.id;
  return target;
}

Options parse(int argc, char** argv) {
  Options options;
  options.role = argv[1];
  std::vector<std::string> targets;
  for (int i = 2; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (!word.starts_with("--")) {
      targets.emplace_back(word);
      continue;
    }
    if (++i == argc) throw std::runtime_error("value missing after " + std::string(word));
    const std::string value = argv[i];
    if (word == "--seed") {
      options.seed = std::strtoull(value.c_str(), nullptr, 10);
    } else if (word == "--writer") {
      options.writer = std::atoi(value.c_str());
    } else if (word == "--node") {
      options.node = std::atoi(value.c_str());
    } else if (word == "--ledgers") {
      options.ledgers = value;
    } else if (word == "--trail") {
      options.trail = value;
    } else if (word == "--scratch") {
      options.scratch = value;
    } else if (word == "--page-size") {
      options.page_size = std::atoi(value.c_str());
    } else {
      throw std::runtime_error("unknown option " + std::string(word));
    }
  }
  for (const std::string& target : targets) options.targets.push_back(parse_target(target, options.ledgers));
  if (options.targets.empty()) throw std::runtime_error("no database named");
  return options;
}

int run(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "trail") {
    Trail::print(argv[2]);
    return 0;
  }
  if (argc < 3) throw std::runtime_error("usage: worker ROLE [options] ID:PROFILE:PATH…");
  const Options options = parse(argc, argv);
  if (options.role == "init") return run_init(options);
  if (options.role == "verify") return run_verify(options);
  Control control;
  if (options.role == "writer") return run_writer(options, control);
  if (options.role == "churner") return run_churner(options, control);
  if (options.role == "reader") return run_reader(options, control);
  if (options.role == "checkpointer") return run_checkpointer(options, control);
  throw std::runtime_error("unknown role " + options.role);
}

}  // namespace

}  // namespace sluice::torture

int main(int argc, char** argv) {
  try {
    return sluice::torture::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "worker: %s\n", error.what());
    return 2;
  }
}
