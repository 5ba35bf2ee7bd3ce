"""What the paper prints, as data: Tables 2, 3, 4 and 8, the figures that its text states, and its sharing grids.

Source: Chen et al., PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution, CVPR 2024,
https://arxiv.org/abs/2403.07589. Spelling is the paper's. Nothing here is computed or measured by this project; a
row names the network that is built for it. Grids that the paper uses without printing them are worked out by hand from
its rule, and say so. The ablations of Tables 1, 5, 6 and 7 lie with their recipes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from . import networks as net
from .networks import Recipe

KernelSizes = tuple[int, int, int, int]  # of the four stages


@dataclass(frozen=True)
class PublishedRow:
    """A row of Tables 2 to 4."""

    method: str  # name of the network, without the citation
    input_size: tuple[int, int]  # height and width, in that order; the paper prints width first in Tables 2 and 3
    params: int  # in millions
    flops: float  # in billions
    scores: dict[str, float]  # in per cent, by metric: ``mIoU``; ``AP_box``, ``AP_mask``; ``top1``
    kernel_sizes: KernelSizes | None  # where the table has that column
    network: Recipe  # what is built for the row; not the paper's

    @property
    def is_ours(self) -> bool:
        """Whether the row is a PeLK, and not a peer."""
        return self.method.startswith('PeLK')


class PrintedGrid(NamedTuple):
    """A sharing grid."""

    kernel_size: int
    center_size: int  # side of the fine-grained centre; for an explicit grid the side of its parameters
    half: tuple[int, ...]  # as the paper's tables print them: from the rim to the centre, which is not doubled
    source: str  # where it is printed, or ``Eq. 2`` where it only follows from the rule
    follows_rule: bool = True  # whether Eq. 2 gives it; an explicit grid need not


_NO_KERNEL = None  # printed as "N/A"
_7 = (7, 7, 7, 7)
_31 = (31, 29, 27, 13)
_51 = (51, 49, 47, 13)
_101 = (101, 69, 67, 13)


def _table_2(
    method: str, kernels: KernelSizes | None, params: int, flops: float, miou: float, network: Recipe
) -> PublishedRow:
    return PublishedRow(method, (512, 2048), params, flops, dict(mIoU=miou), kernels, network)


def _table_3(method: str, params: int, flops: float, box: float, mask: float, network: Recipe) -> PublishedRow:
    return PublishedRow(method, (800, 1280), params, flops, dict(AP_box=box, AP_mask=mask), None, network)


def _table_4(method: str, side: int, params: int, flops: float, top1: float, network: Recipe) -> PublishedRow:
    return PublishedRow(method, (side, side), params, flops, dict(top1=top1), None, network)


#: Digits after the point that a table's FLOPs are printed with; scores have one, parameters none.
FLOPS_DECIMALS = {2: 0, 3: 0, 4: 1}
#: Tables 2, 3 and 4 by number.
TABLES: dict[int, tuple[PublishedRow, ...]] = {
    # Semantic segmentation on ADE20K, UperNet, 160k iterations, single scale
    2: (
        _table_2('Swin-T', _NO_KERNEL, 60, 945, 44.5, net.upernet_swin('tiny')),
        _table_2('ConvNeXt-T', _7, 60, 939, 46.0, net.upernet_convnext('tiny')),
        _table_2('SLaK-T', _51, 64, 957, 47.6, net.slak('seg/upernet_pelk_t_ade20k', note='')),
        _table_2('PeLK-T', _51, 62, 970, 48.1, net.pelk('seg/upernet_pelk_t_ade20k')),
        _table_2('Swin-S', _NO_KERNEL, 81, 1038, 47.6, net.upernet_swin('small')),
        _table_2('ConvNeXt-S', _7, 82, 1027, 48.7, net.upernet_convnext('small')),
        _table_2('SLaK-S', _51, 89, 1057, 49.4, net.slak('seg/upernet_pelk_s_ade20k')),
        _table_2('PeLK-S', _51, 84, 1077, 49.7, net.pelk('seg/upernet_pelk_s_ade20k')),
        _table_2('Swin-B', _NO_KERNEL, 121, 1188, 48.1, net.upernet_swin('base')),
        _table_2('ConvNeXt-B', _7, 122, 1170, 49.1, net.upernet_convnext('base')),
        _table_2('RepLkNet-B', _31, 112, 1170, 49.9, net.upernet_replknet()),
        _table_2('SLaK-B', _51, 131, 1210, 50.2, net.slak('seg/upernet_pelk_b_ade20k')),
        _table_2('PeLK-B', _51, 126, 1237, 50.4, net.pelk('seg/upernet_pelk_b_ade20k')),
        _table_2('PeLK-B-101', _101, 126, 1339, 50.6, net.pelk('seg/upernet_pelk_b_101_ade20k')),
    ),
    # Object detection and instance segmentation on COCO, Cascade Mask R-CNN, 3x schedule
    3: (
        _table_3('Swin-T', 86, 745, 50.5, 43.7, net.cascade_swin(6, 96, 3)),
        _table_3('ConvNeXt-T', 86, 741, 50.4, 43.7, net.cascade_convnext('tiny', 96)),
        _table_3('PeLK-T', 86, 770, 51.4, 44.6, net.pelk('det/cascade_mask_rcnn_pelk_t_coco')),
        _table_3('Swin-S', 107, 838, 51.8, 44.7, net.cascade_swin(18, 96, 3)),
        _table_3('ConvNeXt-S', 108, 827, 51.9, 45.0, net.cascade_convnext('small', 96)),
        _table_3('PeLK-S', 108, 874, 52.2, 45.3, net.pelk('det/cascade_mask_rcnn_pelk_s_coco')),
        _table_3('Swin-B', 145, 982, 51.9, 45.0, net.cascade_swin(18, 128, 4)),
        _table_3('RepLkNet-B', 137, 965, 52.2, 45.2, net.cascade_replknet()),
        _table_3('SLaK-B', 152, 1001, 52.5, 45.5, net.slak('det/cascade_mask_rcnn_pelk_b_coco')),
        _table_3('ConvNeXt-B', 146, 964, 52.7, 45.6, net.cascade_convnext('base', 128, net.WIDENED)),
        _table_3('PeLK-B', 147, 1028, 52.9, 45.9, net.pelk('det/cascade_mask_rcnn_pelk_b_coco')),
        _table_3('PeLK-B-101', 147, 1127, 53.1, 46.1, net.pelk('det/cascade_mask_rcnn_pelk_b_101_coco')),
    ),
    # Image classification on ImageNet-1K
    4: (
        _table_4('Swin-T', 224, 28, 4.5, 81.3, net.classifier('swin_transformer/swin-tiny_16xb64')),
        _table_4('T2T-ViT_t-14', 224, 22, 6.1, 81.7, net.classifier('t2t_vit/t2t-vit-t-14_8xb64', net.ROUNDED_UP)),
        _table_4('PerViT-S', 224, 21, 4.4, 82.1, net.no_network(net.NO_PERVIT)),
        _table_4('ConvNeXt-T', 224, 29, 4.5, 82.1, net.classifier('convnext/convnext-tiny_32xb128')),
        _table_4('PeLK-T', 224, 29, 5.6, 82.6, net.pelk('cls/pelk_t_in1k', net.MASKS)),
        _table_4('PVT-Large', 224, 61, 9.8, 81.7, net.no_network(net.NO_PVT)),
        _table_4('T2T-ViT_t-19', 224, 39, 9.8, 82.4, net.classifier('t2t_vit/t2t-vit-t-19_8xb64')),
        _table_4('PerViT-M', 224, 44, 9.0, 82.9, net.no_network(net.NO_PERVIT)),
        _table_4('Swin-S', 224, 50, 8.7, 83.0, net.classifier('swin_transformer/swin-small_16xb64')),
        _table_4('ConvNeXt-S', 224, 50, 8.7, 83.1, net.classifier('convnext/convnext-small_32xb128')),
        _table_4('PeLK-S', 224, 50, 10.7, 83.9, net.pelk('cls/pelk_s_in1k', net.MASKS)),
        _table_4('DeiT-B/16', 224, 87, 17.6, 81.8, net.classifier('deit/deit-base_16xb64')),
        _table_4('RepLkNet-31B', 224, 79, 15.3, 83.5, net.replknet(net.classifier('convnext/convnext-base_32xb128'))),
        _table_4('Swin-B', 224, 88, 15.4, 83.5, net.classifier('swin_transformer/swin-base_16xb64')),
        _table_4('ConvNeXt-B', 224, 89, 15.4, 83.8, net.classifier('convnext/convnext-base_32xb128')),
        _table_4('SLaK-B', 224, 95, 17.1, 84.0, net.slak('cls/pelk_b_in1k')),
        _table_4('PeLK-B', 224, 89, 18.3, 84.2, net.pelk('cls/pelk_b_in1k')),
        _table_4('ViT-B/16', 384, 87, 55.5, 77.9, net.classifier_384('vision_transformer/vit-base-p16_64xb64')),
        _table_4('DeiT-B/16', 384, 87, 55.4, 83.1, net.classifier_384('deit/deit-base_16xb32')),
        _table_4('Swin-B', 384, 88, 47.1, 84.5, net.classifier_384('swin_transformer/swin-base_16xb64')),
        _table_4(
            'RepLkNet-31B', 384, 79, 45.1, 84.8, net.replknet(net.classifier_384('convnext/convnext-base_32xb128'))
        ),
        _table_4('ConvNeXt-B', 384, 89, 45.0, 85.1, net.classifier_384('convnext/convnext-base_32xb128')),
        _table_4('SLaK-B', 384, 95, 50.3, 85.5, net.slak('cls/pelk_b_in1k_384')),
        _table_4('PeLK-B', 384, 89, 54.0, 85.6, net.pelk('cls/pelk_b_in1k_384')),
        _table_4('PeLK-B-101', 384, 90, 68.3, 85.8, net.pelk('cls/pelk_b_101_in1k_384')),
    ),
}

#: Table 8: "Throughput", without a unit, taken as images per second: FP32 at 224 x 224 on an A100 with PyTorch 1.10.0
#: and cuDNN 8.2.0; the batch size is not given.
TABLE_8 = {'SLaK-T': 754, 'PeLK-T': 1138, 'PeLK-101-T': 1077}
#: Section 3 and Fig. 2: "scaling up kernel from 7 to 51 only bring about 7.3x params for stripe conv while that for
#: dense conv is 53.1x". There is no multiple for the peripheral kernel.
GROWTH = {'stripe': 7.3, 'dense': 53.1}
#: Abstract: parameters of a dense large kernel that the peripheral one saves, "over 90%".
PARAMETERS_SAVED = 90
#: Section 6.2 and Fig. 5, of UperNet PeLK-T at 2048 x 512, in per cent of the backbone's FLOPs: "approximately 25%",
#: "only 0.05%". The rest of Fig. 5 is in the pictures only.
SHARES = {'large kernels': 25.0, 'positional embedding': 0.05}

#: Every grid that the paper prints, and those of its kernel sizes that it does not print.
SHARING_GRIDS: tuple[PrintedGrid, ...] = (
    PrintedGrid(5, 3, (2, 1), 'Fig. 1a', follows_rule=False),
    PrintedGrid(31, 5, (7, 4, 2, 1, 1, 1), 'Fig. 1b'),
    PrintedGrid(33, 5, (8, 4, 2, 1, 1, 1), 'Table 5'),
    PrintedGrid(51, 1, (11, 8, 4, 2, 1), 'Table 6'),
    PrintedGrid(51, 3, (10, 8, 4, 2, 1, 1), 'Table 6'),
    PrintedGrid(51, 5, (9, 8, 4, 2, 1, 1, 1), 'Table 6'),
    PrintedGrid(51, 7, (8, 8, 4, 2, 1, 1, 1, 1), 'Table 6'),
    PrintedGrid(49, 5, (8, 8, 4, 2, 1, 1, 1), 'Eq. 2'),
    PrintedGrid(47, 5, (7, 8, 4, 2, 1, 1, 1), 'Eq. 2'),
    PrintedGrid(13, 5, (2, 2, 1, 1, 1), 'Eq. 2'),
    PrintedGrid(101, 7, (17, 16, 8, 4, 2, 1, 1, 1, 1), 'Eq. 2'),
    PrintedGrid(69, 7, (17, 8, 4, 2, 1, 1, 1, 1), 'Eq. 2, the outermost ring of 1 folded into the next'),
    PrintedGrid(67, 7, (16, 8, 4, 2, 1, 1, 1, 1), 'Eq. 2'),
)
