// A ggml backend that computes products of quantized weights with many rows, and what recurrent layers do with many
// tokens (the gated delta rule, short convolutions), and leaves everything else to the CPU backend. It works on the CPU
// backend's buffers, so weights stay in the mapped file.
//
// llama.cpp gives each new context every device of type "accelerator". Ours says that it is one only in a thread that
// has called `pocketvlm_accelerator_offer`, and otherwise that it is a CPU, of which llama.cpp takes the first: contexts
// that are made without the offer are computed as if the device were not there.

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "ggml_abi.h"
#include "product.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace accelerator {
namespace {

constexpr int TYPE_F32 = 0;            // ggml_type
constexpr int SOURCE_IS_HADAMARD = 1;  // GGML_HINT_SRC0_IS_HADAMARD, in op_params[1]
constexpr int64_t LEAST_ROWS = 5;      // below it llama.cpp's own kernels may be faster
constexpr int64_t LEAST_COLUMNS = 32;
// The number of tokens with which a new context tries where its gated delta rules run: if that is not the layer's
// device, it replaces all of them by many small operations.
constexpr int64_t TRIED_TOKENS = 16;
constexpr const char * NAME = "pocketvlm";

// The functions and constants of the ggml that is loaded.
struct Host {
    ggml::BufferType * (*cpu_buffer_type)();
    bool (*is_host)(ggml::BufferType *);
    int (*node_count)(ggml::Graph *);
    ggml::Tensor * (*node)(ggml::Graph *, int);
    ggml::BufferType * (*buffer_type)(ggml::Buffer *);
    int none, reshape, view, permute, transpose, multiply, delta_net, convolution;  // ggml_op; -1 where ggml lacks it
};

// The CPU backend's buffers of reordered weights, and how it marks tensors of a type whose order the kernels read. The
// order is an internal matter of ggml, so it is tried; null where it is another.
struct Reordered {
    ggml::BufferType * buffer_type;
    const void *q4_0, *iq4_nl;

    const void * mark(int type) const { return type == Q4_0 ? q4_0 : type == IQ4_NL ? iq4_nl : nullptr; }
};

Host host;
Reordered reordered = {};
const Kernel * kernel = nullptr;
thread_local bool offered = false;

struct Free {
    void operator()(void * memory) const { free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(size_t size) {
    return Memory(std::aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT));
}

size_t factors_bytes(const DeltaNet & net) {
    return size_t(net.sequences * net.tokens * net.heads) * sizeof(NetFactors);
}

// One llama.cpp context's use of the device.
struct Context {
    int threads = 1;
    bool (*abort)(void *) = nullptr;
    void * abort_data = nullptr;
    Memory packed, scratch, factors;
    size_t packed_size = 0, scratch_size = 0, factors_size = 0;

    void * packed_memory(size_t size) { return grow(packed, packed_size, size); }
    NetFactors * factors_memory(const DeltaNet & net) {
        return (NetFactors *) grow(factors, factors_size, factors_bytes(net));
    }
    char * scratch_memory() { return (char *) grow(scratch, scratch_size, size_t(threads) * SCRATCH_BYTES); }
    bool aborted() const { return abort && abort(abort_data); }

  private:
    static void * grow(Memory & memory, size_t & size, size_t wanted) {
        if (size < wanted) {
            memory.reset();
            memory = allocate(wanted);
            size = memory ? wanted : 0;
        }
        return memory.get();
    }
};

// `pack`: false where `packed` already holds the input, quantized for the same type.
void compute(const Kernel & with, const Product & product, void * packed, char * scratch, int threads, bool pack) {
    const int64_t groups = (product.rows + GROUP_ROWS - 1) / GROUP_ROWS;
    const int64_t tiles = (product.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    std::atomic<int64_t> next{0};
    // The pool of OpenMP's threads is the one that ggml's CPU backend uses. A second one would compete with it.
#pragma omp parallel num_threads(threads)
    {
        if (pack) {
#pragma omp for schedule(dynamic, 2)
            for (int64_t group = 0; group < groups; group++) {
                with.pack(product, packed, group);
            }
        }
        char * const own = scratch + size_t(next.fetch_add(1)) * SCRATCH_BYTES;
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < tiles; tile++) {
            with.multiply(product, packed, own, tile);
        }
    }
}

void compute(const Kernel & with, const DeltaNet & net, NetFactors * factors, char * scratch, int threads) {
    const int64_t heads = net.heads * net.sequences, parts = net.width / NET_ROWS;
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t head = 0; head < heads; head++) {
            with.net_factors(net, factors, head % net.heads, head / net.heads);
        }
        char * const own = scratch + size_t(next.fetch_add(1)) * SCRATCH_BYTES;
#pragma omp for schedule(dynamic, 1)
        for (int64_t part = 0; part < heads * parts; part++) {
            const int64_t head = part / parts, row = part % parts * NET_ROWS;
            with.net_rows(net, factors, own, head % net.heads, head / net.heads, row);
        }
    }
}

void compute(const Kernel & with, const Convolution & convolution, char * scratch, int threads) {
    const int64_t parts = convolution.channels / CONVOLVED_CHANNELS;
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
    {
        char * const own = scratch + size_t(next.fetch_add(1)) * SCRATCH_BYTES;
#pragma omp for schedule(dynamic, 4)
        for (int64_t part = 0; part < convolution.sequences * parts; part++) {
            with.convolve(convolution, own, part / parts, part % parts * CONVOLVED_CHANNELS);
        }
    }
}

bool is_reordered(const ggml::Tensor * weights) {
    return reordered.buffer_type && weights->buffer && host.buffer_type(weights->buffer) == reordered.buffer_type;
}

Product product_of(const ggml::Tensor * node, int threads) {
    const ggml::Tensor *weights = node->src[0], *input = node->src[1];
    Product product = {};
    product.type = weights->type;
    product.weights = (const char *) weights->data;
    product.weight_stride = weights->nb[1];
    product.interleaved = is_reordered(weights);
    product.input = (const char *) input->data;
    product.input_stride = input->nb[1];
    product.output = (char *) node->data;
    product.output_stride = node->nb[1];
    product.rows = input->ne[1] * input->ne[2] * input->ne[3];
    product.columns = weights->ne[1];
    product.depth = weights->ne[0];
    product.threads = threads;
    return product;
}

DeltaNet::Input net_input(const ggml::Tensor * tensor) {
    return {(const char *) tensor->data, tensor->nb[1], tensor->nb[2], tensor->nb[3], tensor->ne[1]};
}

DeltaNet delta_net_of(const ggml::Tensor * node) {
    const ggml::Tensor * value = node->src[2];
    DeltaNet net = {};
    net.query = net_input(node->src[0]);
    net.key = net_input(node->src[1]);
    net.value = net_input(value);
    net.gates = (const float *) node->src[3]->data;
    net.betas = (const float *) node->src[4]->data;
    net.states = (const char *) node->src[5]->data;
    net.state_stride = node->src[5]->nb[3];
    net.output = (float *) node->data;
    net.width = value->ne[0];
    net.heads = value->ne[1];
    net.tokens = value->ne[2];
    net.sequences = value->ne[3];
    return net;
}

Convolution convolution_of(const ggml::Tensor * node) {
    const ggml::Tensor *input = node->src[0], *weights = node->src[1];
    Convolution convolution = {};
    convolution.inputs = (const char *) input->data;
    convolution.input_stride = input->nb[1];
    convolution.input_sequence = input->nb[2];
    convolution.all_weights = (const char *) weights->data;
    convolution.weight_stride = weights->nb[1];
    convolution.outputs = (char *) node->data;
    convolution.output_stride = node->nb[1];
    convolution.output_sequence = node->nb[2];
    convolution.channels = node->ne[0];
    convolution.tokens = node->ne[1];
    convolution.sequences = node->ne[2];
    convolution.taps = weights->ne[0];
    return convolution;
}

// --- backend ---

const char * backend_name(ggml::Backend *) { return NAME; }

void free_backend(ggml::Backend * backend) {
    delete (Context *) backend->context;
    delete backend;
}

int compute_graph(ggml::Backend * backend, ggml::Graph * graph) {
    Context & context = *(Context *) backend->context;
    const ggml::Tensor * packed_input = nullptr;
    int packed_type = -1;
    for (int i = 0; i < host.node_count(graph); i++) {
        const ggml::Tensor * node = host.node(graph, i);
        const bool computes = node->op == host.multiply || node->op == host.delta_net || node->op == host.convolution;
        if (!computes || !(node->flags & ggml::FLAG_COMPUTE)) {
            continue;
        }
        if (context.aborted()) {
            return ggml::ABORTED;
        }
        char * const scratch = context.scratch_memory();
        if (!scratch) {
            return ggml::ALLOCATION_FAILED;
        }
        if (node->op == host.convolution) {
            compute(*kernel, convolution_of(node), scratch, context.threads);
            continue;
        }
        if (node->op == host.delta_net) {
            const DeltaNet net = delta_net_of(node);
            NetFactors * const factors = context.factors_memory(net);
            if (!factors) {
                return ggml::ALLOCATION_FAILED;
            }
            compute(*kernel, net, factors, scratch, context.threads);
            continue;
        }
        const Product product = product_of(node, context.threads);
        const bool pack = packed_input != node->src[1] || packed_type != product.type;
        void * const packed = context.packed_memory(packed_bytes(product));
        if (!packed) {
            return ggml::ALLOCATION_FAILED;
        }
        compute(*kernel, product, packed, scratch, context.threads, pack);
        packed_input = node->src[1], packed_type = product.type;
    }
    return ggml::SUCCESS;
}

void set_threads(ggml::Backend * backend, int count) {
    ((Context *) backend->context)->threads = count > 0 ? count : 1;
}

void set_abort(ggml::Backend * backend, bool (*abort)(void *), void * data) {
    Context & context = *(Context *) backend->context;
    context.abort = abort, context.abort_data = data;
}

// --- device ---

const char * device_name(ggml::Device *) { return NAME; }
const char * device_description(ggml::Device *) { return kernel->name; }
void device_memory(ggml::Device *, size_t * free, size_t * total) { *free = *total = 0; }
int device_type(ggml::Device *) { return offered ? ggml::DEVICE_ACCEL : ggml::DEVICE_CPU; }

void device_properties(ggml::Device * device, ggml::DeviceProperties * properties) {
    *properties = {};
    properties->name = NAME;
    properties->description = kernel->name;
    properties->type = device_type(device);
    properties->capabilities.mmap_support = true;
}

const uint8_t GUID[16] = {0x70, 0x6f, 0x63, 0x6b, 0x65, 0x74, 0x76, 0x6c,
                          0x6d, 0x61, 0x63, 0x63, 0x65, 0x6c, 0x00, 0x01};

ggml::Backend * init_backend(ggml::Device * device, const char *) {
    ggml::BackendFunctions functions = {};
    functions.get_name = backend_name;
    functions.free = free_backend;
    functions.graph_compute = compute_graph;
    return new ggml::Backend{&GUID, functions, device, new Context};
}

ggml::BufferType * buffer_type(ggml::Device *) { return host.cpu_buffer_type(); }

bool is_product(const ggml::Tensor * op) {
    const ggml::Tensor *weights = op->src[0], *input = op->src[1];
    const int block = block_size(weights->type);
    const void * const mark = reordered.mark(weights->type);
    if (is_reordered(weights) && (!mark || weights->extra != mark || weights->ne[1] % INTERLEAVED_COLUMNS)) {
        return false;
    }
    return block && weights->ne[0] % block == 0 && weights->ne[2] == 1 && weights->ne[3] == 1 &&
           weights->ne[1] >= LEAST_COLUMNS && input->type == TYPE_F32 && input->ne[1] >= LEAST_ROWS &&
           input->nb[0] == 4 && input->nb[2] == input->nb[1] * size_t(input->ne[1]) &&
           input->nb[3] == input->nb[2] * size_t(input->ne[2]) && op->type == TYPE_F32 && op->nb[0] == 4 &&
           op->nb[2] == op->nb[1] * size_t(op->ne[1]) && op->nb[3] == op->nb[2] * size_t(op->ne[2]) &&
           op->op_params[1] != SOURCE_IS_HADAMARD;
}

bool is_contiguous(const ggml::Tensor * tensor, int dimensions) {
    size_t stride = 4;
    for (int i = 0; i < dimensions; i++) {
        if (tensor->nb[i] != stride) {
            return false;
        }
        stride *= size_t(tensor->ne[i]);
    }
    return true;
}

bool is_delta_net(const ggml::Tensor * op) {
    for (int i = 0; i < 6; i++) {
        if (op->src[i]->type != TYPE_F32 || op->src[i]->nb[0] != 4) {
            return false;
        }
    }
    const ggml::Tensor *query = op->src[0], *key = op->src[1], *value = op->src[2], *gate = op->src[3];
    const int64_t width = value->ne[0];
    return op->op_params[0] == 1 &&  // the last state only
           width % NET_ROWS == 0 && width <= NET_WIDTH && query->ne[0] == width && key->ne[0] == width &&
           query->ne[3] == value->ne[3] && key->ne[3] == value->ne[3] && value->ne[2] >= LEAST_ROWS &&
           value->ne[2] != TRIED_TOKENS && gate->ne[0] == 1 && is_contiguous(gate, 4) &&
           is_contiguous(op->src[4], 4) && is_contiguous(op->src[5], 3) &&
           op->type == TYPE_F32 && is_contiguous(op, 4);
}

bool is_convolution(const ggml::Tensor * op) {
    const ggml::Tensor *input = op->src[0], *weights = op->src[1];
    return input->type == TYPE_F32 && weights->type == TYPE_F32 && op->type == TYPE_F32 && input->nb[0] == 4 &&
           weights->nb[0] == 4 && op->nb[0] == 4 && op->ne[0] % CONVOLVED_CHANNELS == 0 && op->ne[1] >= LEAST_ROWS;
}

bool supports_op(ggml::Device *, const ggml::Tensor * op) {
    if (op->op == host.multiply) {
        return is_product(op);
    }
    if (op->op == host.delta_net) {
        return is_delta_net(op);
    }
    if (op->op == host.convolution) {
        return is_convolution(op);
    }
    // Nodes that compute nothing, so that they do not split a graph.
    return op->op == host.none || op->op == host.reshape || op->op == host.view || op->op == host.permute ||
           op->op == host.transpose;
}

bool supports_buffer_type(ggml::Device *, ggml::BufferType * type) {
    return host.is_host(type) || (type == reordered.buffer_type && type);
}

// --- registry ---

const char * registry_name(ggml::Registry *) { return NAME; }
size_t device_count(ggml::Registry *) { return 1; }

ggml::Device * get_device(ggml::Registry * registry, size_t) {
    static ggml::Device device = [registry] {
        ggml::Device made = {};
        made.functions.get_name = device_name;
        made.functions.get_description = device_description;
        made.functions.get_memory = device_memory;
        made.functions.get_type = device_type;
        made.functions.get_properties = device_properties;
        made.functions.init_backend = init_backend;
        made.functions.get_buffer_type = buffer_type;
        made.functions.supports_op = supports_op;
        made.functions.supports_buffer_type = supports_buffer_type;
        made.registry = registry;
        return made;
    }();
    return &device;
}

void * get_function(ggml::Registry *, const char * name) {
    if (!strcmp(name, "ggml_backend_set_n_threads")) {
        return (void *) set_threads;
    }
    if (!strcmp(name, "ggml_backend_set_abort_callback")) {
        return (void *) set_abort;
    }
    return nullptr;
}

ggml::Registry registry = {ggml::API_VERSION, {registry_name, device_count, get_device, get_function}, nullptr};

template <class Function> bool look_up(void * library, const char * name, Function & function) {
    function = (Function) dlsym(library, name);
    return function != nullptr;
}

int find_op(const char * (*name_of)(int), const char * name) {
    // ggml_op_name reads behind its table for numbers that are not there, so the search ends with the last operation.
    constexpr int MOST = 128;
    for (int op = 0; op < MOST; op++) {
        if (!strcmp(name_of(op), name)) {
            return op;
        }
        if (!strcmp(name_of(op), "GLU")) {
            break;
        }
    }
    return -1;
}

// Functions that are needed to learn how weights are reordered.
struct Trial {
    ggml::Device * (*device_by_type)(int);
    ggml::Registry * (*registry_of)(ggml::Device *);
    void * (*function)(ggml::Registry *, const char *);
    const char * (*name)(ggml::BufferType *);
    ggml::Tensors * (*init)(ggml::Arena);
    void (*free)(ggml::Tensors *);
    size_t (*tensor_overhead)();
    ggml::Tensor * (*new_tensor)(ggml::Tensors *, int type, int64_t width, int64_t rows);
    ggml::Buffer * (*allocate)(ggml::Tensors *, ggml::BufferType *);
    void (*free_buffer)(ggml::Buffer *);
    void (*set)(ggml::Tensor *, const void *, size_t offset, size_t size);

    bool look_up_all(void * library) {
        return look_up(library, "ggml_backend_dev_by_type", device_by_type) &&
               look_up(library, "ggml_backend_dev_backend_reg", registry_of) &&
               look_up(library, "ggml_backend_reg_get_proc_address", function) &&
               look_up(library, "ggml_backend_buft_name", name) && look_up(library, "ggml_init", init) &&
               look_up(library, "ggml_free", free) && look_up(library, "ggml_tensor_overhead", tensor_overhead) &&
               look_up(library, "ggml_new_tensor_2d", new_tensor) &&
               look_up(library, "ggml_backend_alloc_ctx_tensors_from_buft", allocate) &&
               look_up(library, "ggml_backend_buffer_free", free_buffer) &&
               look_up(library, "ggml_backend_tensor_set", set);
    }
};

// Returns how the CPU backend marks a tensor of `type` that it has brought into the interleaved order; null where it
// has another order for it, or none.
const void * learn_mark(const Trial & trial, ggml::BufferType * buffer_type, int type) {
    constexpr int BLOCKS_OF_ROW = 3, BLOCKS = BLOCKS_OF_ROW * INTERLEAVED_COLUMNS;
    uint8_t plain[BLOCKS][INTERLEAVED_BLOCK];
    for (int b = 0; b < BLOCKS; b++) {
        for (int i = 0; i < INTERLEAVED_BLOCK; i++) {
            plain[b][i] = uint8_t(b * 37 + i * 101);
        }
    }
    ggml::Tensors * tensors = trial.init({4 * trial.tensor_overhead(), nullptr, true});
    ggml::Tensor * tensor = trial.new_tensor(tensors, type, 32 * BLOCKS_OF_ROW, INTERLEAVED_COLUMNS);
    ggml::Buffer * buffer = trial.allocate(tensors, buffer_type);
    const void * mark = nullptr;
    if (buffer && tensor->extra) {
        trial.set(tensor, plain, 0, sizeof plain);
        const uint8_t * found = (const uint8_t *) tensor->data;
        const uint8_t mask = type == Q4_0 ? INTERLEAVED_MASK : 0;
        bool same = true;
        for (int b = 0; b < BLOCKS_OF_ROW; b++) {
            for (int column = 0; column < INTERLEAVED_COLUMNS; column++) {
                const uint8_t * block = plain[column * BLOCKS_OF_ROW + b];
                const uint8_t * at = found + b * INTERLEAVED_COLUMNS * INTERLEAVED_BLOCK;
                same = same && !memcmp(at + 2 * column, block, 2);
                for (int i = 0; i < 16; i++) {
                    const int piece = i / INTERLEAVED_PIECE * INTERLEAVED_COLUMNS + column;
                    const uint8_t byte =
                        at[2 * INTERLEAVED_COLUMNS + piece * INTERLEAVED_PIECE + i % INTERLEAVED_PIECE];
                    same = same && byte == (block[2 + i] ^ mask);
                }
            }
        }
        mark = same ? tensor->extra : nullptr;
    }
    if (buffer) {
        trial.free_buffer(buffer);
    }
    trial.free(tensors);
    return mark;
}

void learn_reordered(void * library) {
    Trial trial;
    if (!trial.look_up_all(library)) {
        return;
    }
    ggml::Device * cpu = trial.device_by_type(ggml::DEVICE_CPU);
    if (!cpu) {
        return;
    }
    using GetTypes = ggml::BufferType ** (*)(ggml::Device *);
    const auto types = (GetTypes) trial.function(trial.registry_of(cpu), "ggml_backend_dev_get_extra_bufts");
    for (ggml::BufferType ** type = types ? types(cpu) : nullptr; type && *type; type++) {
        if (!strcmp(trial.name(*type), "CPU_REPACK")) {
            reordered = {*type, learn_mark(trial, *type, Q4_0), learn_mark(trial, *type, IQ4_NL)};
        }
    }
}

const Kernel * choose_kernel(const char * name) {
    for (int i = 0; i < KERNEL_COUNT; i++) {
        if (KERNELS[i]->runs_here() && (!name || !strcmp(KERNELS[i]->name, name))) {
            return KERNELS[i];
        }
    }
    return nullptr;
}

}  // namespace
}  // namespace accelerator

using namespace accelerator;

// Returns the name of the fastest kernel that runs on this machine, and is called `name` unless that is null; null
// where there is none.
EXPORTED const char * pocketvlm_accelerator_kernel(const char * name) {
    const Kernel * chosen = choose_kernel(name);
    return chosen ? chosen->name : nullptr;
}

// Registers the device, once in a process, with the ggml that `library` (a handle of dlopen) is linked to. Returns
// null, or what is wrong.
EXPORTED const char * pocketvlm_accelerator_register(void * library, const char * kernel_name) {
    if (kernel) {
        return "it is already registered";
    }
    const Kernel * chosen = choose_kernel(kernel_name);
    if (!chosen) {
        return "no kernel for this machine";
    }
    void (*add)(ggml::Registry *);
    const char * (*op_name)(int);
    size_t (*tensor_overhead)();
    ggml::Registry * (*get_registry)(size_t);
    if (!look_up(library, "ggml_backend_register", add) || !look_up(library, "ggml_op_name", op_name) ||
        !look_up(library, "ggml_tensor_overhead", tensor_overhead) ||
        !look_up(library, "ggml_backend_reg_get", get_registry) ||
        !look_up(library, "ggml_backend_cpu_buffer_type", host.cpu_buffer_type) ||
        !look_up(library, "ggml_backend_buft_is_host", host.is_host) ||
        !look_up(library, "ggml_backend_buffer_get_type", host.buffer_type) ||
        !look_up(library, "ggml_graph_n_nodes", host.node_count) || !look_up(library, "ggml_graph_node", host.node)) {
        return "this ggml lacks a function";
    }
    if (get_registry(0)->api_version != ggml::API_VERSION) {
        return "this ggml has another interface of backends";
    }
    constexpr size_t OBJECT_BYTES = 32;  // ggml_object, which precedes a tensor
    if (tensor_overhead() != sizeof(ggml::Tensor) + OBJECT_BYTES) {
        return "this ggml has other tensors";
    }
    host.none = find_op(op_name, "NONE");
    host.reshape = find_op(op_name, "RESHAPE");
    host.view = find_op(op_name, "VIEW");
    host.permute = find_op(op_name, "PERMUTE");
    host.transpose = find_op(op_name, "TRANSPOSE");
    host.multiply = find_op(op_name, "MUL_MAT");
    host.delta_net = find_op(op_name, "GATED_DELTA_NET");
    host.convolution = find_op(op_name, "SSM_CONV");
    if (host.multiply < 0) {
        return "this ggml has no MUL_MAT";
    }
    learn_reordered(library);
    kernel = chosen;
    add(&registry);
    return nullptr;
}

// Whether the kernels read weights of a ggml_type that the CPU backend has reordered.
EXPORTED bool pocketvlm_accelerator_reads_reordered(int type) { return reordered.mark(type) != nullptr; }

// Whether contexts that the calling thread makes from now on use the device.
EXPORTED void pocketvlm_accelerator_offer(bool offer) { offered = offer; }

// Computes one product outside of ggml; `name` names the kernel, or is null. Strides are of contiguous matrices.
// Returns false where the kernel or the type is unknown, or the depth is not a multiple of the type's block.
EXPORTED bool pocketvlm_accelerator_multiply(
    const char * name, int type, const void * weights, size_t weight_stride, const float * input, float * output,
    int64_t rows, int64_t columns, int64_t depth, int threads
) {
    const Kernel * chosen = choose_kernel(name);
    const int block = block_size(type);
    if (!chosen || !block || depth % block || rows < 1 || columns < 1 || threads < 1) {
        return false;
    }
    Product product = {};
    product.type = type;
    product.weights = (const char *) weights;
    product.weight_stride = weight_stride;
    product.input = (const char *) input;
    product.input_stride = size_t(depth) * 4;
    product.output = (char *) output;
    product.output_stride = size_t(columns) * 4;
    product.rows = rows;
    product.columns = columns;
    product.depth = depth;
    product.threads = threads;
    const Memory packed = allocate(packed_bytes(product)), scratch = allocate(size_t(threads) * SCRATCH_BYTES);
    if (!packed || !scratch) {
        return false;
    }
    compute(*chosen, product, packed.get(), (char *) scratch.get(), threads, true);
    return true;
}

// Computes a gated delta rule outside of ggml, over contiguous tensors; `output` also gets the new states. Returns
// false where the kernel is unknown or the width is not one of its.
EXPORTED bool pocketvlm_accelerator_delta_net(
    const char * name, const float * queries, const float * keys, const float * values, const float * gates,
    const float * betas, const float * states, float * output, int64_t width, int64_t heads, int64_t key_heads,
    int64_t tokens, int64_t sequences, int threads
) {
    const Kernel * chosen = choose_kernel(name);
    if (!chosen || width < 1 || width % NET_ROWS || width > NET_WIDTH || heads < 1 || key_heads < 1 || tokens < 1 ||
        sequences < 1 || threads < 1) {
        return false;
    }
    const auto input = [&](const float * at, int64_t count) {
        const size_t row = size_t(width) * 4, token = row * size_t(count);
        return DeltaNet::Input{(const char *) at, row, token, token * size_t(tokens), count};
    };
    const DeltaNet net = {
        input(queries, key_heads), input(keys, key_heads), input(values, heads), gates, betas, (const char *) states,
        size_t(heads * width * width) * 4, output, width, heads, tokens, sequences,
    };
    const Memory factors = allocate(factors_bytes(net)), scratch = allocate(size_t(threads) * SCRATCH_BYTES);
    if (!factors || !scratch) {
        return false;
    }
    compute(*chosen, net, (NetFactors *) factors.get(), (char *) scratch.get(), threads);
    return true;
}
