// Compares ggml_abi.h with the headers of the ggml that the build has. It only has to compile.

#include <cstddef>

#include "ggml-backend-impl.h"
#include "ggml_abi.h"
#include "product.h"
#include "ggml.h"

#define SAME_SIZE(ours, theirs) static_assert(sizeof(ggml::ours) == sizeof(theirs))
#define SAME_PLACE(ours, field, theirs, name) static_assert(offsetof(ggml::ours, field) == offsetof(theirs, name))

static_assert(ggml::API_VERSION == GGML_BACKEND_API_VERSION);
static_assert(ggml::FLAG_COMPUTE == GGML_TENSOR_FLAG_COMPUTE);
static_assert(ggml::ALLOCATION_FAILED == GGML_STATUS_ALLOC_FAILED && ggml::SUCCESS == GGML_STATUS_SUCCESS);
static_assert(ggml::ABORTED == GGML_STATUS_ABORTED);
static_assert(ggml::DEVICE_CPU == GGML_BACKEND_DEVICE_TYPE_CPU && ggml::DEVICE_ACCEL == GGML_BACKEND_DEVICE_TYPE_ACCEL);
static_assert(accelerator::Q8_0 == int(GGML_TYPE_Q8_0) && accelerator::Q4_0 == int(GGML_TYPE_Q4_0));
static_assert(accelerator::Q5_0 == int(GGML_TYPE_Q5_0) && accelerator::IQ4_NL == int(GGML_TYPE_IQ4_NL));
static_assert(accelerator::Q4_K == int(GGML_TYPE_Q4_K) && accelerator::Q5_K == int(GGML_TYPE_Q5_K));
static_assert(accelerator::Q6_K == int(GGML_TYPE_Q6_K));

static_assert(int(GGML_OP_GLU) + 1 == int(GGML_OP_COUNT));  // find_op ends there

SAME_SIZE(Arena, ggml_init_params);
SAME_PLACE(Arena, without_data, ggml_init_params, no_alloc);

SAME_SIZE(Tensor, ggml_tensor);
SAME_PLACE(Tensor, buffer, ggml_tensor, buffer);
SAME_PLACE(Tensor, extra, ggml_tensor, extra);
SAME_PLACE(Tensor, ne, ggml_tensor, ne);
SAME_PLACE(Tensor, nb, ggml_tensor, nb);
SAME_PLACE(Tensor, op, ggml_tensor, op);
SAME_PLACE(Tensor, op_params, ggml_tensor, op_params);
SAME_PLACE(Tensor, flags, ggml_tensor, flags);
SAME_PLACE(Tensor, src, ggml_tensor, src);
SAME_PLACE(Tensor, data, ggml_tensor, data);

SAME_SIZE(BackendFunctions, ggml_backend_i);
SAME_PLACE(BackendFunctions, free, ggml_backend_i, free);
SAME_PLACE(BackendFunctions, graph_compute, ggml_backend_i, graph_compute);
SAME_SIZE(Backend, ggml_backend);
SAME_PLACE(Backend, device, ggml_backend, device);
SAME_PLACE(Backend, context, ggml_backend, context);

SAME_SIZE(DeviceProperties, ggml_backend_dev_props);
SAME_PLACE(DeviceProperties, type, ggml_backend_dev_props, type);
SAME_PLACE(DeviceProperties, capabilities.mmap_support, ggml_backend_dev_props, caps.mmap_support);
SAME_SIZE(DeviceFunctions, ggml_backend_device_i);
SAME_PLACE(DeviceFunctions, get_type, ggml_backend_device_i, get_type);
SAME_PLACE(DeviceFunctions, get_properties, ggml_backend_device_i, get_props);
SAME_PLACE(DeviceFunctions, init_backend, ggml_backend_device_i, init_backend);
SAME_PLACE(DeviceFunctions, get_buffer_type, ggml_backend_device_i, get_buffer_type);
SAME_PLACE(DeviceFunctions, supports_op, ggml_backend_device_i, supports_op);
SAME_PLACE(DeviceFunctions, supports_buffer_type, ggml_backend_device_i, supports_buft);
SAME_SIZE(Device, ggml_backend_device);
SAME_PLACE(Device, registry, ggml_backend_device, reg);

SAME_SIZE(RegistryFunctions, ggml_backend_reg_i);
SAME_PLACE(RegistryFunctions, get_device, ggml_backend_reg_i, get_device);
SAME_PLACE(RegistryFunctions, get_proc_address, ggml_backend_reg_i, get_proc_address);
SAME_SIZE(Registry, ggml_backend_reg);
SAME_PLACE(Registry, functions, ggml_backend_reg, iface);
