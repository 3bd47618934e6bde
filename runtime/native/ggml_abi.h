// The part of ggml's binary interface that a backend needs, declared here because llama-cpp-python installs no header
// of it. abi_check.cpp compares every offset with the real headers, where the build has them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggml {

constexpr int API_VERSION = 2;                                   // GGML_BACKEND_API_VERSION
constexpr int FLAG_COMPUTE = 16;                                 // GGML_TENSOR_FLAG_COMPUTE
constexpr int ALLOCATION_FAILED = -2, SUCCESS = 0, ABORTED = 1;  // ggml_status
constexpr int DEVICE_CPU = 0, DEVICE_ACCEL = 3;                  // ggml_backend_dev_type

struct Arena {  // ggml_init_params
    size_t size;
    void * memory;
    bool without_data;
};

struct Tensors;  // ggml_context
struct Buffer;
struct BufferType;
struct Graph;

struct Tensor {
    int type;
    Buffer * buffer;
    int64_t ne[4];  // elements
    size_t nb[4];   // strides in bytes
    int op;
    int32_t op_params[16];
    int32_t flags;
    Tensor * src[10];
    Tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};

struct Device;
struct Registry;
struct Backend;

// Functions that this backend leaves out are null; their types do not matter then.
using Absent = void (*)();

struct BackendFunctions {
    const char * (*get_name)(Backend *);
    void (*free)(Backend *);
    Absent set_tensor_async, get_tensor_async, set_tensor_2d_async, get_tensor_2d_async, cpy_tensor_async;
    Absent synchronize;
    Absent graph_plan_create, graph_plan_free, graph_plan_update, graph_plan_compute;
    int (*graph_compute)(Backend *, Graph *);
    Absent event_record, event_wait;
    Absent graph_optimize;
};

struct Backend {
    const uint8_t (*guid)[16];
    BackendFunctions functions;
    Device * device;
    void * context;
};

struct DeviceProperties {
    const char * name;
    const char * description;
    size_t memory_free, memory_total;
    int type;
    const char * device_id;
    struct {
        bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
    } capabilities;
};

struct DeviceFunctions {
    const char * (*get_name)(Device *);
    const char * (*get_description)(Device *);
    void (*get_memory)(Device *, size_t * free, size_t * total);
    int (*get_type)(Device *);
    void (*get_properties)(Device *, DeviceProperties *);
    Backend * (*init_backend)(Device *, const char * parameters);
    BufferType * (*get_buffer_type)(Device *);
    Absent get_host_buffer_type, buffer_from_host_ptr;
    bool (*supports_op)(Device *, const Tensor *);
    bool (*supports_buffer_type)(Device *, BufferType *);
    Absent offload_op, event_new, event_free, event_synchronize;
};

struct Device {
    DeviceFunctions functions;
    Registry * registry;
    void * context;
};

struct RegistryFunctions {
    const char * (*get_name)(Registry *);
    size_t (*get_device_count)(Registry *);
    Device * (*get_device)(Registry *, size_t index);
    void * (*get_proc_address)(Registry *, const char * name);
};

struct Registry {
    int api_version;
    RegistryFunctions functions;
    void * context;
};

}  // namespace ggml
