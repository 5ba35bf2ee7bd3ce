"""Heads of MMSegmentation and MMDetection on PeLK and on enlarged networks: what ``docs/heads.md`` shows.

    python -m tests.configs.heads    # writes the page's table

Each head is the one of a config of its toolbox, in which a user replaces the backbone and the keys of :class:`Head`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config, ConfigDict

from tests.configs.resolved import config
from tests.packaging.use_wheel import SIZE
from tests.paths import ROOT

PAGE = ROOT / 'docs' / 'heads.md'
START, END = '<!-- table: python -m tests.configs.heads -->\n', '<!-- end of the table -->\n'
ALL = (0, 1, 2, 3)


@dataclass(frozen=True)
class Head:
    """A head, and what one changes in its config.

    Attributes:
        name: In the table.
        config: Of the toolbox, the model with a backbone of four stages.
        widths: Keys of ``model`` that are the width of a stage, or those of several.
        maps: Stages whose maps the head reads.
        changes: Other keys of ``model``; ``in_index`` counts the backbone's maps.
        size: Keys that only a small picture needs.
        own_normalisation: Whether the config normalises pictures in another way than ImageNet's RGB.
        note: In the table.
    """

    name: str
    config: str
    widths: dict[str, int | tuple[int, ...]]
    maps: tuple[int, ...] = ALL
    changes: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)
    own_normalisation: bool = False
    note: str = ''

    @property
    def scope(self) -> str:
        """Toolbox of the head."""
        return self.config.partition('::')[0]


@dataclass(frozen=True)
class Backbone:
    """A small network.

    Attributes:
        cfg: Its config, without ``out_indices``.
        widths: Channels of its four maps.
        indices: Their ``out_indices``.
    """

    cfg: dict[str, Any]
    widths: tuple[int, int, int, int]
    indices: tuple[int, int, int, int]


def mmseg(name: str, config: str, widths: dict[str, Any], **more: Any) -> Head:
    return Head(name, f'mmseg::{config}', widths, **more)


def mmdet(name: str, config: str, widths: dict[str, Any] | None = None, **more: Any) -> Head:
    return Head(name, f'mmdet::{config}', widths or {'neck.in_channels': more.get('maps', ALL)}, **more)


UPPER = (1, 2, 3)
EMBEDDING = {'bbox_head.embed_dims': 32}  # of which 256 is the default
# An FPN that starts at the second map leaves the first, and the norm in front of it, without a gradient.
STARTS_LATER: dict[str, Any] = dict(maps=UPPER, changes={'neck.start_level': 0})
NORMALISATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
WITHOUT_RESIZING = {'data_preprocessor.batch_augments': None}
LAST_TWO: dict[str, Any] = dict(maps=(2, 3), changes={'auxiliary_head.in_index': 0, 'decode_head.in_index': 1})

HEADS = [
    mmseg(
        'UPerNet',
        'upernet/upernet_r50_4xb4-160k_ade20k-512x512',
        {'decode_head.in_channels': ALL, 'auxiliary_head.in_channels': 2},
    ),
    mmseg('Semantic FPN', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512', {'neck.in_channels': ALL}),
    mmseg('SegFormer', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512', {'decode_head.in_channels': ALL}),
    mmseg(
        'DeepLabV3+',
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512',
        {'decode_head.in_channels': 3, 'decode_head.c1_in_channels': 0, 'auxiliary_head.in_channels': 2},
        maps=(0, 2, 3),
        changes={'decode_head.in_index': 2, 'auxiliary_head.in_index': 1},
    ),
    mmseg(
        'PSPNet',
        'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512',
        {'decode_head.in_channels': 3, 'auxiliary_head.in_channels': 2},
        **LAST_TWO,
    ),
    mmseg(
        'OCRNet',
        'ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512',
        {'decode_head.0.in_channels': ALL, 'decode_head.1.in_channels': ALL},
    ),
    mmseg('PointRend', 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512', {'neck.in_channels': ALL}),
    mmseg(
        'K-Net',
        'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512',
        {'decode_head.kernel_generate_head.in_channels': ALL, 'auxiliary_head.in_channels': 2},
    ),
    mmseg('Mask2Former', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512', {'decode_head.in_channels': ALL}),
    mmdet('Faster R-CNN', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco'),
    mmdet('Mask R-CNN', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'),
    mmdet('Cascade R-CNN', 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco'),
    mmdet('Cascade Mask R-CNN', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco'),
    mmdet('HTC', 'htc/htc-without-semantic_r50_fpn_1x_coco'),
    mmdet('RetinaNet', 'retinanet/retinanet_r50_fpn_1x_coco', **STARTS_LATER),
    mmdet('FCOS', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', **STARTS_LATER, own_normalisation=True),
    mmdet('ATSS', 'atss/atss_r50_fpn_1x_coco', **STARTS_LATER),
    mmdet('YOLOX', 'yolox/yolox_s_8xb8-300e_coco', maps=UPPER, size=WITHOUT_RESIZING, own_normalisation=True),
    mmdet('RTMDet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco', maps=UPPER, size=WITHOUT_RESIZING, own_normalisation=True),
    mmdet(
        'RTMDet-Ins',
        'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco',
        maps=UPPER,
        size=WITHOUT_RESIZING,
        own_normalisation=True,
    ),
    mmdet('DETR', 'detr/detr_r50_8xb2-150e_coco', maps=(3,)),
    mmdet('Deformable DETR', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco', maps=UPPER, size=EMBEDDING),
    mmdet('DINO', 'dino/dino-4scale_r50_8xb2-12e_coco', maps=UPPER, size=EMBEDDING | {'num_queries': 40}),
    mmdet('Sparse R-CNN', 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco'),
    mmdet(
        'QueryInst',
        'queryinst/queryinst_r50_fpn_1x_coco',
        note='on a CPU `clip_border=True` in each `bbox_coder`: mmdet pastes masks outside the picture on GPUs alone',
    ),
    mmdet('SOLOv2', 'solov2/solov2_r50_fpn_1x_coco'),
    mmdet('CondInst', 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance', **STARTS_LATER),
    mmdet(
        'Mask2Former, instances',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        {'panoptic_head.in_channels': ALL},
        size=WITHOUT_RESIZING,
    ),
]

PELK = Backbone(
    dict(
        type='mmpelk.PeLK',
        arch=dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), kernel_sizes=(13, 11, 9, 7)),
        gap_before_final_norm=False,
    ),
    (8, 12, 16, 20),
    (0, 1, 2, 3),
)
# A network of each toolbox whose depthwise convolutions are enlarged.
ENLARGED = {
    'mmseg': Backbone(
        dict(type='mmpelk.Enlarged', kernel_size=13, backbone=dict(type='mmseg.MobileNetV2', widen_factor=0.25)),
        (8, 8, 24, 80),
        (1, 2, 4, 6),
    ),
    'mmdet': Backbone(
        dict(
            type='mmpelk.Enlarged',
            kernel_size=13,
            backbone=dict(type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.125),
        ),
        (16, 32, 64, 128),
        (1, 2, 3, 4),
    ),
}

# Widths and counts, an eighth of which is enough here.
_LARGE = {
    *('in_channels', 'out_channels', 'channels', 'feat_channels', 'embed_dims', 'num_feats', 'feedforward_channels'),
    *('ocr_channels', 'fc_out_channels', 'conv_out_channels', 'proposal_feature_channel', 'num_groups', 'num_points'),
    *('num_queries', 'num_proposals', 'subdivision_num_points', 'nms_pre', 'max_per_img', 'max_per_image', 'num'),
}
_ALL_PASS = dict(score_thr=0.0, filter_thr=0.0, min_bbox_size=-1, clip_border=True)


def small_model(head: Head, backbone: Backbone) -> ConfigDict:
    """The model of a head's config on a backbone, as a user would write it, and then as small as a test wants it."""
    cfg = Config.fromfile(config(head.config))
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    _shrink(cfg.model)
    widths = {
        key: backbone.widths[stages] if isinstance(stages, int) else [backbone.widths[stage] for stage in stages]
        for key, stages in head.widths.items()
    }
    values = widths | head.changes | head.size
    if head.own_normalisation:
        values |= {f'data_preprocessor.{key}': value for key, value in NORMALISATION.items()}
    if head.scope == 'mmseg':
        values['data_preprocessor.size'] = (SIZE, SIZE)  # to which it pads
    cfg.merge_from_dict({f'model.{key}': value for key, value in values.items()})
    network = dict(backbone.cfg)
    inner = network['backbone'] = dict(network['backbone']) if 'backbone' in network else None
    (inner or network)['out_indices'] = tuple(backbone.indices[stage] for stage in head.maps)
    cfg.model.backbone = network if inner else {key: value for key, value in network.items() if key != 'backbone'}
    cfg.model.pop('pretrained', None)
    return cfg.model


def _shrink(node: Any) -> None:
    """Make widths and counts an eighth, transformers one layer deep, and let every box through."""
    if isinstance(node, list | tuple):
        for child in node:
            _shrink(child)
    if not isinstance(node, dict):
        return
    if 'layer_cfg' in node:
        node['num_layers'] = 1
    # Boxes outside the picture have masks that mmdet cannot paste on a CPU.
    node.update({key: value for key, value in _ALL_PASS.items() if key in node})
    for key, value in node.items():
        if key in _LARGE:
            node[key] = [_eighth(each) for each in value] if isinstance(value, Sequence) else _eighth(value)
        elif key != 'backbone':
            _shrink(value)


def _eighth(value: int | None) -> int | None:
    return value // 8 if value and value >= 32 else value


def table() -> str:
    """The page's table."""
    lines = ['| head | config of the toolbox | keys of `model` to change, beside `backbone` |', '|---|---|---|']
    for head in HEADS:
        keys = [f'`{key}`: {_said(stages)}' for key, stages in head.widths.items()]
        keys += [f'`{key}={value!r}`' for key, value in head.changes.items()]
        if head.maps != ALL:
            keys.insert(0, f'`backbone.out_indices={head.maps!r}`')
        keys += ['`data_preprocessor`: the normalisation of the weights'] * head.own_normalisation
        keys += [head.note] if head.note else []
        lines.append(f'| {head.name} | `{head.config}.py` | {", ".join(keys)} |')
    return '\n'.join(lines) + '\n'


def _said(stages: int | tuple[int, ...]) -> str:
    return f'width {stages}' if isinstance(stages, int) else f'widths {" ".join(map(str, stages))}'


def page_with(text: str) -> str:
    """The page with another table."""
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f'{before}{START}\n{text}\n{END}{after}'


if __name__ == '__main__':
    PAGE.write_text(page_with(table()))
