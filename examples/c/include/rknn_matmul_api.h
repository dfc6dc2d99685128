/* Stands in for the vendor's header of this name on machines that do not have it. */
#include "rknn_api.h"
