# ConvNeXt's public ImageNet-1K weights, which the toolboxes' own recipes start from, for PeLK's kernels in ConvNeXt.
_folder = 'https://mmassets.onedl.ai/mmclassification/v0/convnext/downstream'
inflated = {
    size: dict(type='mmpelk.Inflated', checkpoint=f'{_folder}/convnext-{size}_3rdparty_32xb128-noema_in1k_{tag}.pth')
    for size, tag in (('tiny', '20220301-795e9634'), ('small', '20220301-303e75e3'), ('base', '20220301-2a0ee547'))
}
