// The emulator's C interface, and the OS threads that launches share.
//
// The thread that launches runs blocks itself; threads of a pool that have nothing else to do join it, and it never waits for one to
// come. Blocks begin in the order that the launch asked for. A block stays on the OS thread that began it, and a thread begins another
// while its own wait in grid_barrier: so all blocks of a cooperative launch are in flight at the same time, on however few OS threads.
// Reversed and shuffled launches run on the calling thread alone: what they find, they find again.
//
// HEADFIRST_EMULATOR_THREADS bounds the OS threads of a launch, the calling one included; the default is one for each processor.

#include "block.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <thread>

namespace emulator {

constexpr unsigned MAX_SHARED_BYTES = 227 * 1024; // of a block, on sm_90

static std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

bool add(const Kernel &kernel) {
    kernels().push_back(kernel);
    return true;
}

using Blocks = std::vector<std::unique_ptr<Block>>;

// What an OS thread keeps for the next launch.
struct Worker {
    Stacks stacks;
    Blocks spare;

    std::unique_ptr<Block> take() {
        if (spare.empty()) return std::make_unique<Block>();
        std::unique_ptr<Block> block = std::move(spare.back());
        spare.pop_back();
        return block;
    }
    void give_back(std::unique_ptr<Block> block) { spare.push_back(std::move(block)); }

    static Worker &mine() {
        static thread_local Worker worker;
        return worker;
    }
};

class Launch {
  public:
    Shape shape{};
    std::uint64_t blocks = 0;
    std::vector<std::uint32_t> shuffled; // the blocks' order, if it is a shuffled one
    std::string error;
    int helpers = 0; // threads of the pool that work for it; guarded by the pool

    bool has_more() const { return begun < blocks && !failed; }
    void work();

  private:
    std::unique_ptr<Block> begin_next(Worker &worker);
    void wait_for_opening(const Blocks &mine);
    void announce_opening();
    void count_worker(int change);
    void fail(const std::string &reason);

    std::atomic<std::uint64_t> begun{0}, ended{0};
    std::atomic<bool> failed{false};

    // Workers whose blocks wait for those of others.
    std::mutex mutex;
    std::condition_variable changed;
    std::uint64_t openings = 0;
    int workers = 0;
    int waiting = 0; // workers that found nothing to do since the last opening
};

// The first block from `turn` on whose grid barrier is open.
static std::size_t find_open(const Blocks &blocks, std::size_t turn) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        const std::size_t at = (turn + i) % blocks.size();
        if (blocks[at]->grid_barrier_is_open()) return at;
    }
    return blocks.size();
}

void Launch::work() {
    Worker &worker = Worker::mine();
    Blocks mine; // all wait in grid_barrier, save for the one that runs
    std::size_t turn = 0;
    count_worker(1);
    while (!failed) {
        turn = find_open(mine, turn);
        if (turn == mine.size()) {
            if (std::unique_ptr<Block> block = begin_next(worker)) {
                mine.push_back(std::move(block));
            } else if (mine.empty()) {
                break;
            } else {
                wait_for_opening(mine);
                continue;
            }
        }
        Block &block = *mine[turn];
        const Block::Outcome outcome = block.go_on();
        const bool arrived = block.take_arrival();
        switch (outcome) {
        case Block::Outcome::Ended:
            ended += 1;
            worker.give_back(std::move(mine[turn]));
            mine.erase(mine.begin() + std::ptrdiff_t(turn));
            break;
        case Block::Outcome::WaitsForGrid:
            turn += 1;
            break;
        case Block::Outcome::Failed: fail(block.error()); break;
        }
        if (arrived) announce_opening();
    }
    for (std::unique_ptr<Block> &block : mine) {
        block->abandon();
        worker.give_back(std::move(block));
    }
    count_worker(-1);
}

// Those who wait look again, and count who is left.
void Launch::count_worker(int change) {
    std::unique_lock lock(mutex);
    workers += change;
    waiting = 0;
    openings += 1;
    changed.notify_all();
}

std::unique_ptr<Block> Launch::begin_next(Worker &worker) {
    const std::uint64_t turn = begun.fetch_add(1);
    if (turn >= blocks) return nullptr;
    const std::uint64_t number = shape.order == FORWARD ? turn : shape.order == REVERSED ? blocks - 1 - turn : shuffled[turn];
    const uint3 grid = shape.grid;
    const uint3 index{unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    std::unique_ptr<Block> block = worker.take();
    if (block->begin(shape, index, number, worker.stacks)) return block;
    fail(block->name() + ": no memory for its shared memory");
    worker.give_back(std::move(block));
    return nullptr;
}

void Launch::wait_for_opening(const Blocks &mine) {
    std::unique_lock lock(mutex);
    if (failed || find_open(mine, 0) < mine.size()) return;
    waiting += 1;
    if (waiting == workers) {
        lock.unlock();
        fail(mine[0]->name() + ": waits in vain in " + mine[0]->awaited() + "; " + std::to_string(blocks - ended) + " of " +
             std::to_string(blocks) + " blocks wait in a grid_barrier, " + std::to_string(ended) + " ended without reaching it");
        return;
    }
    changed.wait(lock, [&, seen = openings] { return openings != seen || failed; });
}

void Launch::announce_opening() {
    std::unique_lock lock(mutex);
    openings += 1;
    waiting = 0;
    changed.notify_all();
}

void Launch::fail(const std::string &reason) {
    std::unique_lock lock(mutex);
    if (!failed) error = reason;
    failed = true;
    changed.notify_all();
}

// Threads that help whoever launches. Never destroyed, as its threads never end.
class Pool {
  public:
    static Pool &shared() {
        static Pool *pool = new Pool;
        return *pool;
    }

    // Lets threads join `launch` until `close`, which waits for those that did.
    void open(Launch &launch) {
        if (threads == 0) return;
        std::unique_lock lock(mutex);
        launches.push_back(&launch);
        lock.unlock();
        const std::uint64_t others = launch.blocks - 1;
        for (std::uint64_t i = 0; i < others && i < std::uint64_t(threads); ++i) offered.notify_one();
    }

    void close(Launch &launch) {
        if (threads == 0) return;
        std::unique_lock lock(mutex);
        launches.erase(std::find(launches.begin(), launches.end(), &launch));
        left.wait(lock, [&] { return launch.helpers == 0; });
    }

  private:
    Pool() {
        const char *bound = std::getenv("HEADFIRST_EMULATOR_THREADS");
        const int wanted = bound ? std::atoi(bound) : int(std::thread::hardware_concurrency());
        try {
            for (; threads < std::min(wanted - 1, 64); ++threads) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error &) {
            // The launching threads work alone, or with those that could be made.
        }
    }

    [[noreturn]] void serve() {
        std::unique_lock lock(mutex);
        for (;;) {
            const auto found = std::find_if(launches.begin(), launches.end(), [](const Launch *launch) { return launch->has_more(); });
            if (found == launches.end()) {
                offered.wait(lock);
                continue;
            }
            Launch &launch = **found;
            launch.helpers += 1;
            lock.unlock();
            launch.work();
            lock.lock();
            launch.helpers -= 1;
            left.notify_all();
        }
    }

    int threads = 0;
    std::mutex mutex;
    std::condition_variable offered, left;
    std::vector<Launch *> launches;
};

static thread_local std::string last_error;

// Why a GPU would refuse this launch; empty if it would not.
static std::string refusal(const Kernel &kernel, const uint3 &grid, const uint3 &block, unsigned shared_bytes, int order) {
    const auto text = [](std::uint64_t number) { return std::to_string(number); };
    const std::string of = std::string("kernel ") + kernel.name + ": ";
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || !threads) return of + "a grid or a block of size 0";
    if (grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu) return of + "a grid larger than 2147483647 x 65535 x 65535";
    if (block.x > MAX_THREADS || block.y > MAX_THREADS || block.z > 64) return of + "a block larger than 1024 x 1024 x 64";
    if (threads > MAX_THREADS) return of + text(threads) + " threads a block, at most " + text(MAX_THREADS) + " are possible";
    if (threads > std::uint64_t(kernel.threads)) {
        return of + text(threads) + " threads a block, its bound is " + text(std::uint64_t(kernel.threads));
    }
    if (shared_bytes > MAX_SHARED_BYTES) {
        return of + text(shared_bytes) + " bytes of shared memory, at most " + text(MAX_SHARED_BYTES) + " are possible";
    }
    if (order < FORWARD || order > SHUFFLED) return of + "no such order: " + std::to_string(order);
    if (order == SHUFFLED && std::uint64_t{grid.x} * grid.y * grid.z > 0xffffffffu) return of + "too many blocks to shuffle";
    return {};
}

static bool exists(int kernel) {
    if (kernel >= 0 && std::size_t(kernel) < kernels().size()) return true;
    last_error = "no kernel has the number " + std::to_string(kernel);
    return false;
}

static const Argument *argument(int kernel, int index) {
    if (!exists(kernel)) return nullptr;
    const Kernel &found = kernels()[std::size_t(kernel)];
    if (index >= 0 && index < found.argument_count) return &found.arguments[index];
    last_error = std::string("kernel ") + found.name + " has no argument " + std::to_string(index);
    return nullptr;
}

} // namespace emulator

using namespace emulator;

// Functions that give a number give -1 for a kernel or an argument that does not exist.
extern "C" {

const char *headfirst_emulator_error() { return last_error.c_str(); }

int headfirst_emulator_find(const char *name) {
    const std::vector<Kernel> &all = kernels();
    const auto found = std::find_if(all.begin(), all.end(), [&](const Kernel &kernel) { return std::strcmp(kernel.name, name) == 0; });
    if (found == all.end()) {
        last_error = std::string("no kernel is called ") + name;
        return -1;
    }
    return int(found - all.begin());
}

int headfirst_emulator_argument_count(int kernel) { return exists(kernel) ? kernels()[std::size_t(kernel)].argument_count : -1; }

int headfirst_emulator_argument_size(int kernel, int index) {
    const Argument *found = argument(kernel, index);
    return found ? found->size : -1;
}

int headfirst_emulator_argument_kind(int kernel, int index) {
    const Argument *found = argument(kernel, index);
    return found ? found->kind : -1;
}

int headfirst_emulator_threads(int kernel) { return exists(kernel) ? kernels()[std::size_t(kernel)].threads : -1; }

// Under AddressSanitizer memory is forbidden to kernels, or permitted again; gives 0 where it is not at work.
int headfirst_emulator_guard([[maybe_unused]] const void *begin, [[maybe_unused]] unsigned long long bytes, [[maybe_unused]] int on) {
#ifdef __SANITIZE_ADDRESS__
    if (on) __asan_poison_memory_region(begin, bytes);
    else __asan_unpoison_memory_region(begin, bytes);
    return 1;
#else
    return 0;
#endif
}

int headfirst_emulator_launch(int kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes, int cooperative,
                              void *const *arguments, int order, unsigned long long seed) {
    if (!exists(kernel)) return 1;
    const Kernel &found = kernels()[std::size_t(kernel)];
    Launch launch;
    launch.shape.grid = {grid[0], grid[1], grid[2]};
    launch.shape.block = {block[0], block[1], block[2]};
    last_error = refusal(found, launch.shape.grid, launch.shape.block, shared_bytes, order);
    if (!last_error.empty()) return 1;

    Shape &shape = launch.shape;
    shape.kernel = &found;
    for (int i = 0; i < found.argument_count; ++i) std::memcpy(&shape.slots[i], arguments[i], std::size_t(found.arguments[i].size));
    shape.shared_bytes = shared_bytes;
    shape.cooperative = cooperative != 0;
    shape.order = Order(order);
    shape.seed = seed;
    launch.blocks = std::uint64_t{grid[0]} * grid[1] * grid[2];
    if (order == SHUFFLED) {
        launch.shuffled.resize(launch.blocks);
        std::iota(launch.shuffled.begin(), launch.shuffled.end(), 0u);
        Random random(seed);
        for (std::size_t i = launch.shuffled.size() - 1; i > 0; --i) std::swap(launch.shuffled[i], launch.shuffled[random.below(i + 1)]);
    }
    const bool shared = launch.blocks > 1 && order == FORWARD;
    if (shared) Pool::shared().open(launch);
    launch.work();
    if (shared) Pool::shared().close(launch);
    last_error = launch.error;
    return last_error.empty() ? 0 : 1;
}

} // extern "C"
