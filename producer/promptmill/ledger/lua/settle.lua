-- settle: the submitter ends prompts itself (cancel): one error for all given positions, or for all that are left.
local id, json = ARGV[3], ARGV[4]
local count = tonumber(redis.call('HGET', key('record:' .. id), 'count'))
if not count then return 0 end
local positions = split(ARGV[5])
if #positions == 0 then positions = all_positions(count) end
local left = {}
for _, position in ipairs(unanswered(id, positions)) do
  -- Positions come from task ids, which people type.
  if tonumber(position) < count then left[#left + 1] = position end
end
answer_all(id, left, json)
if #left > 0 and is_complete(id) then conclude(id, clock()) end
return #left
