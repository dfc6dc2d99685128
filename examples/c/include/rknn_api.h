/* Stands in for the vendor's header of this name on machines that do not have it. */
#include "../../../native/include/rknn_abi.h"
