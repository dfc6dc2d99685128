/* The images of A of a batch of slices: rows measured, packed and synchronised. */
#ifndef NPUMATMUL_IMAGES_H
#define NPUMATMUL_IMAGES_H

#include "tile.h"

/*
 * Pack the images of the batch at hand, from the caller's rows, and synchronise them. Where there are many rows the threads
 * of the crew share them; the bits are the same. Before the first batch of a range its rows are transformed and measured.
 */
int npumm_pack_images(npumm_work *work, npumm_crew *crew, npumm_report *report);

/* Synchronise the images of the batch at hand. */
int npumm_sync_images(const npumm_work *work, npumm_report *report);

#endif
